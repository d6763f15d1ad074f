"""Attacks within a box around the input: on the predicted class, and on the attribution.

``box.py``: the box, and projected gradient ascent in it of *any* quantity; shared by all attacks and by training.
``pgd.py``: the attack on the predicted class. ``importance.py``: the attack on the attribution. ``robustness.py``: how much of
accuracy and attributions is left under both.
"""
