"""Tables of the held-out benchmark."""


def shown(result):
    return ""
