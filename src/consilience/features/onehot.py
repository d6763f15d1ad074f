"""Which columns of a table are the one-hot block of a category: what their names suggest, and what data show of it.

Names are as scikit-learn's OneHotEncoder and pandas' get_dummies give them: ``job_clerk``, or ``cat__job_clerk`` behind a
ColumnTransformer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError


def block_labels(names: Sequence[str], encoded: Sequence[str] | None, separator: str) -> list[str]:
    """For each column the name of the block to which it may belong; its own name, where it stands alone.

    Args:
        names: one for each column.
        encoded: the names of the columns that were encoded; None: not known, then the text in front of the first separator.
        separator: between the encoded column's name and the category's.

    Raises:
        InputError: no column begins with a name in ``encoded``.

    Example:
        >>> block_labels(["age", "job_clerk", "job_cook", "pay_net"], None, "_")
        ['age', 'job', 'job', 'pay_net']
    """
    if encoded is None:
        labels = [_prefix(name) + _bare(name).partition(separator)[0] for name in names]
        # A name that shares its beginning with no other is not the only category of something.
        count = Counter(labels)
        return [name if count[label] == 1 else label for label, name in zip(labels, names, strict=True)]
    # Longest first: "job_title" fits job_title_clerk better than "job" does.
    longest_first = sorted(encoded, key=len, reverse=True)
    for label in longest_first:
        if not any(_begins(name, label + separator) for name in names):
            raise InputError(f"of: no column begins with {label + separator!r}; they begin {', '.join(names[:4])}, …")
    return [_encoded_label(name, longest_first, separator) for name in names]


def _encoded_label(name: str, encoded: Sequence[str], separator: str) -> str:
    """The first of the encoded columns with which a column's name begins; the name itself, if there is none."""
    for label in encoded:
        if name.startswith(label + separator):
            return label
        if _begins(name, label + separator):
            return _prefix(name) + label
    return name


def _begins(name: str, beginning: str) -> bool:
    """Whether a column's name begins so, with or without its prefix."""
    return name.startswith(beginning) or _bare(name).startswith(beginning)


def _bare(name: str) -> str:
    """A column's name without the prefix of a ColumnTransformer's part, ``cat__``."""
    return name.rpartition("__")[2]


def _prefix(name: str) -> str:
    """That prefix, or ""."""
    return name.removesuffix(_bare(name))


def one_hot_columns(rows: Tensor, strict: bool) -> list[bool]:
    """Which of some columns are a one-hot block, as far as data show.

    An indicator has two values, 0 and 1 or, where columns were scaled, any two, of which the larger is set. A column with a
    single value other than 0 and 1 tells nothing.

    Args:
        rows: (n, columns), of a block that names suggest.
        strict: each row has exactly one set, or the columns are not a block.

    Returns:
        a truth value for each column.
    """
    unscaled = ((rows == 0) | (rows == 1)).all(0)
    lowest = rows.amin(0)
    highest = rows.amax(0)
    two_values = ((rows == lowest) | (rows == highest)).all(0)
    # A block was scaled as a whole, or not at all.
    indicators = unscaled if bool(unscaled.any()) else two_values
    if not strict:
        return indicators.tolist()
    constant = ~unscaled & (lowest == highest)
    set_value = torch.where(unscaled, torch.ones_like(highest), highest)
    is_set = (rows == set_value) & ~constant & indicators
    count = is_set.sum(1)
    several_set = bool((count > 1).any())
    none_set = bool((count == 0).any())
    # A column that tells nothing may be the one that is set where no other is.
    unknown = bool((constant & indicators).any())
    if several_set or (none_set and not unknown):
        return [False] * rows.shape[1]
    return indicators.tolist()
