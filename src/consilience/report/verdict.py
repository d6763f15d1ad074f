"""The verdict on a result in a few sentences: how much is explained, what is certain, and which methods not to trust.

Each sentence follows from numbers in the record by a tested rule. Where the numbers are missing, the sentence is too.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from .differences import side_of_zero
from .reading import Record, listing, mapping, number, text

# Keys of criteria in records.
FAITHFUL = "faithfulness_correlation"
CONTRAST = "contrast"

ERRORS = 2.0
"""How many standard errors above zero a correlation must be."""

BLIND = 0.05
"""A map whose contrast is less than this share of its size is nearly the same for every output."""

_UNKNOWN = "the signs of the others, and the order among these, are not"

NAMED = 4
"""The most methods that a sentence names; of more it gives their number."""


def verdict(records: Sequence[Record]) -> list[str]:
    """Sentences about one input, or about several together.

    Args:
        records: one for each input; they may be of an earlier version, or damaged.
    """
    if not records:
        return []
    sentences = [_explained(records), _certain(records), _uninformative(records), _blind(records)]
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences if sentence]


def _explained(records: Sequence[Record]) -> str:
    """How much of what masks do the consensus explains, and the best single method beside it."""
    shares = [_share(record, "consensus") for record in records]
    known = [share for share in shares if share is not None]
    objective = _objective(records[0])
    if not known:
        return ""
    if not any(_significant(record, "consensus") for record in records):
        # Without a standard error, as with very few draws, "nothing" would not be known either.
        if not any(_tested(record, "consensus") for record in records):
            return ""
        return (
            f"{objective} explains nothing of what masks do: its correlation is not above zero by two standard errors"
        )
    words = f"{objective} explains {fmean(known):.0%}"
    if len(records) == 1:
        error = _error(records[0], "consensus")
        words += f" ± {_percent(error)}" if error else ""
    else:
        words += " on average"
    if all(_exact(record) for record in records):
        words += " of what all masks that there are do"
    else:
        words += " of what masks do on fresh draws"
    beside = _beside(records)
    if not beside:
        return words
    return f"{words}; {beside}"


def _objective(record: Record) -> str:
    """The objective's name or expression; "the consensus" for a caller's own object, whose settings would fill a line."""
    name = text(record, "objective")
    if not name or "=" in name:
        return "the consensus"
    return name


def _percent(share: float) -> str:
    """An error as a percentage; below one per cent its first digit, so that it is not shown as 0."""
    percent = 100 * share
    if percent >= 1:
        return f"{percent:.0f}%"
    return f"{percent:.1g}%"


def _beside(records: Sequence[Record]) -> str:
    """The best single method, and whether the consensus is better than it."""
    if len(records) == 1:
        record = records[0]
        difference = mapping(record, "differences", FAITHFUL)
        best = text(difference, "best_single")
        share = _share(record, best) if best else None
        if share is None:
            return ""
        return f"the best single method, {best}, {share:.0%}{_compared(difference)}"
    pairs = []
    better = 0
    worse = 0
    for record in records:
        difference = mapping(record, "differences", FAITHFUL)
        share = _share(record, text(difference, "best_single"))
        if share is not None:
            pairs.append(share)
            side = side_of_zero(difference, higher=True)
            better += side == "better"
            worse += side == "worse"
    if not pairs:
        return ""
    words = f"the best single method of each {fmean(pairs):.0%}; certainly better for {better}"
    if worse:
        words += f" and certainly worse for {worse}"
    return f"{words} of {len(pairs)} inputs"


def _compared(difference: Record) -> str:
    """In brackets, on which side of zero the 95 % interval of the difference lies."""
    words = {
        "better": " (certainly less)",
        "worse": " (certainly more)",
        "equal": " (the same)",
        "undecided": " (which of the two is better is not decided)",
    }
    return words.get(side_of_zero(difference, higher=True), "")


def _certain(records: Sequence[Record]) -> str:
    """How many signs of a posterior are certain; "" for other objectives."""
    each = [mapping(record, "posterior") for record in records]
    counts = [
        (number(one, "certain_positive"), number(one, "certain_negative"), number(one, "certain_of")) for one in each
    ]
    known = [(up, down, of) for up, down, of in counts if up is not None and down is not None and of]
    if not known:
        return ""
    unit = text(each[0], "certain_unit")
    article = "an" if unit[:1] in "aeiou" else "a"
    each_part = f"each {article} {unit}"
    up = fmean([one[0] for one in known])
    down = fmean([one[1] for one in known])
    of = fmean([one[2] for one in known])
    if up + down == 0:
        return f"no part of the input is certain to raise or lower the score (of {of:.0f}, {each_part})"
    exact = all(_exact(record) for record in records)
    if len(known) > 1:
        sure = "by all masks that there are, on average" if exact else "certain at 95 % on average"
        return f"{sure}: {up:.1f} of {of:.0f} parts ({each_part}) raise the score, {down:.1f} lower it"
    counted = f"{up:.0f} of {of:.0f} parts ({each_part}) raise the score, {down:.0f} lower it"
    if exact:
        return f"by all masks that there are, {counted}"
    unknown = "the order among these is not" if up + down == of else _UNKNOWN
    return f"certain at 95 %, all together: {counted}; {unknown}"


def _uninformative(records: Sequence[Record]) -> str:
    """Which methods are not known to be better than a map that is the same everywhere."""
    working = _working(records[0])
    judged = [name for name in working if any(_tested(record, name) for record in records)]
    # Given how much a mask removes, a uniform map has no correlation: it explains nothing.
    uninformative = [name for name in judged if not any(_significant(record, name) for record in records)]
    if not uninformative:
        return ""
    return f"not known to be better than a uniform map: {_named(uninformative, len(working))}"


def _blind(records: Sequence[Record]) -> str:
    """Which methods give nearly the same map for every output."""
    blind = []
    for name in _working(records[0]):
        contrasts = [number(record, "criteria", CONTRAST, name, "fresh") for record in records]
        known = [value for value in contrasts if value is not None]
        if known and fmean(known) < BLIND:
            blind.append(name)
    if not blind:
        return ""
    # A model with one output is asked about another input in place of another output.
    other = "input" if text(records[0], "settings", "outputs") == "one output" else "output"
    return f"nearly the same for every {other}: {_named(blind, len(_working(records[0])))}"


def _working(record: Record) -> list[str]:
    """The methods that did not fail."""
    failed = mapping(record, "failed")
    return [str(name) for name in listing(record, "methods") if name not in failed]


def _named(names: Sequence[str], of: int) -> str:
    """The names, or how many there are."""
    if len(names) <= NAMED:
        return ", ".join(names)
    return f"{len(names)} of {of} methods"


def _share(record: Record, row: str) -> float | None:
    """ρ² on fresh masks; 0 where ρ is negative; None where it is not known."""
    rho = number(record, "criteria", FAITHFUL, row, "fresh")
    if rho is None:
        return None
    return max(rho, 0.0) ** 2


def _error(record: Record, row: str) -> float | None:
    """The standard error of ρ², to first order: 2ρ times that of ρ."""
    rho = number(record, "criteria", FAITHFUL, row, "fresh")
    stderr = number(record, "criteria", FAITHFUL, row, "stderr")
    if rho is None or stderr is None:
        return None
    return 2 * max(rho, 0.0) * stderr


def _exact(record: Record) -> bool:
    """Whether all possible masks were drawn, so that nothing is estimated."""
    return "exact" in mapping(record, "draws", "masks")


def _tested(record: Record, row: str) -> bool:
    """Whether a row's correlation is known with its error."""
    cell = mapping(record, "criteria", FAITHFUL, row)
    return number(cell, "fresh") is not None and number(cell, "stderr") is not None


def _significant(record: Record, row: str) -> bool:
    """Whether a row's correlation is above zero by more than chance."""
    rho = number(record, "criteria", FAITHFUL, row, "fresh")
    stderr = number(record, "criteria", FAITHFUL, row, "stderr")
    if rho is None or stderr is None:
        return False
    return rho > ERRORS * stderr
