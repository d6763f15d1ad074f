"""What is known about PyTorch's operations: their names by kind, and what their arguments say.

Names are without underscores: ``clamp_`` is clamp, ``__getitem__`` is getitem.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CLIPS = _words("relu relu6 hardtanh clamp clip clamp_min clamp_max threshold")
"""Rectifiers, if their arguments are those of one: see :func:`rectifies`."""

GATES = _words("sigmoid expit tanh hardsigmoid softsign")
"""Bounded activations: guided backpropagation keeps their derivative."""

LEAKY = _words(
    "leaky_relu prelu rrelu elu selu celu gelu silu mish hardswish softplus logsigmoid log_sigmoid softshrink"
    " hardshrink tanhshrink"
)
"""Activations that let negative values through: what guided backpropagation would mean for them is not defined."""

MAX_POOLS = {f"{a}max_pool{n}d{b}" for a in ("", "adaptive_") for n in "123" for b in ("", "_with_indices")}

ACTIVATIONS = CLIPS | GATES | LEAKY | MAX_POOLS | _words("softmax log_softmax softmin glu")
"""What is counted and shown as an activation of the model."""

ELEMENTWISE = (CLIPS | GATES | LEAKY) | _words(
    "abs absolute exp exp2 expm1 log log1p log2 log10 sin cos tan sinh cosh asin acos atan asinh acosh atanh arctan erf"
    " erfc square sqrt rsqrt reciprocal pow rpow float_power rdiv rtruediv maximum minimum fmax fmin floor ceil round"
    " trunc sign sinc"
)
"""Functions that work element by element and are not affine."""

LINEAR = _words(
    "add sub subtract rsub radd iadd isub neg negative positive sum mean cat concat concatenate stack view"
    " reshape flatten unflatten ravel squeeze unsqueeze permute transpose swapaxes swapdims movedim moveaxis"
    " t T mT H mH adjoint contiguous clone to type type_as float double half bfloat16 cpu cuda expand"
    " expand_as broadcast_to broadcast_tensors repeat repeat_interleave tile view_as reshape_as getitem"
    " select narrow split chunk tensor_split split_with_sizes unbind iter index_select gather take"
    " take_along_dim masked_select masked_fill masked_scatter where index_add index_copy index_fill index_put"
    " scatter scatter_add select_scatter slice_scatter setitem copy fill zero roll flip fliplr flipud rot90"
    " diagonal diag tril triu cumsum diff unfold fold pad interpolate upsample pixel_shuffle pixel_unshuffle"
    " channel_shuffle native_channel_shuffle avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d"
    " adaptive_avg_pool2d adaptive_avg_pool3d dropout dropout1d dropout2d dropout3d alpha_dropout"
    " feature_dropout feature_alpha_dropout real view_as_real data alias requires_grad retain_grad"
    " register_hook as_strided trace"
)
"""Operations that are affine in all their tensors together."""

MULTILINEAR = _words(
    "mul multiply rmul imul div divide true_divide truediv matmul rmatmul mm bmm mv dot inner outer einsum"
    " tensordot addmm addmv addbmm baddbmm addcmul linear bilinear lerp batch_norm grid_sample conv1d conv2d"
    " conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc multi_dot kron"
)
"""Operations that are affine in each tensor while the others stay the same."""

MOVES = _words("permute transpose swapaxes swapdims movedim moveaxis t T mT H mH adjoint")
"""Operations that may move the batch axis."""

DIVISIONS = _words("div divide true_divide truediv")

JOINS = _words("cat concat concatenate stack")

SHAPES = _words("expand_as view_as reshape_as type_as")
"""Operations that read only the shape or type of their second tensor."""

EMPTY = _words("zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty")
"""Operations that make a new tensor and read only the shape and type of the one they are given."""

PROPERTIES = _words("T mT H mH real imag data")
"""Attributes of a tensor that are tensors themselves, so that reading them is an operation."""


def identify(func: Any, kwargs: dict) -> tuple[str | None, bool]:
    """The name of the operation that a torch function is, and whether it writes to its first argument.

    Args:
        func: what ``__torch_function__`` was given.
        kwargs: the call's keyword arguments, of which ``inplace`` counts.

    Returns:
        (name without underscores, in-place); name None for a read of an attribute that is not a tensor.
    """
    raw = getattr(func, "__name__", str(func))
    # The read of an attribute comes as its descriptor's __get__; the attribute's name is the descriptor's.
    if raw == "__get__":
        raw = func.__self__.__name__
        if raw not in PROPERTIES:
            return None, False
    raw = raw.partition(".")[0]  # overloads: add.Tensor
    return raw.strip("_").removeprefix("special_"), writes(raw, kwargs)


def writes(raw: str, kwargs: dict) -> bool:
    """Whether a function of the name ``raw``, underscores and all, called with ``kwargs``, writes to its first argument."""
    # clamp_ writes; __getitem__ does not.
    trailing = raw.endswith("_") and not raw.endswith("__")
    return bool(kwargs.get("inplace")) or trailing or raw == "__setitem__"


def argument(args: tuple, kwargs: dict, place: int, key: str, default: Any) -> Any:
    """One argument of a call.

    Args:
        args: the call's positional arguments.
        kwargs: its keyword arguments.
        place: where it stands among the positional ones.
        key: its keyword.
        default: its value where it is not given.
    """
    if key in kwargs:
        return kwargs[key]
    return args[place] if len(args) > place else default


def rectifies(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether a call is max(0, x), possibly with an upper bound.

    Args:
        name: without underscores.
        args: the call's positional arguments.
        kwargs: its keyword arguments.
    """

    def is_zero(place: int, key: str, default: float | None) -> bool:
        bound = argument(args, kwargs, place, key, default)
        # A bound may be a tensor, with a value for each element.
        return bound is not None and bool((torch.as_tensor(bound) == 0).all())

    if name in ("relu", "relu6"):
        return True
    if name == "hardtanh":
        return is_zero(1, "min_val", -1)
    if name == "threshold":
        return is_zero(1, "threshold", None) and is_zero(2, "value", None)
    return name in ("clamp", "clip", "clamp_min") and is_zero(1, "min", None)


def gated(x: Tensor, gate: Tensor) -> bool:
    """Whether one tensor is a gate of another, as its graph says: x · gate(x) is a swish written out.

    Args:
        x: a tensor.
        gate: whether this is sigmoid, tanh or hardsigmoid of ``x``.
    """
    made_gate = gate.grad_fn
    made_x = x.grad_fn
    if made_gate is None or made_x is None:
        return False
    if not made_gate.name().lower().startswith(("sigmoid", "tanh", "hardsigmoid")):
        return False
    return any(parent is made_x for parent, _ in made_gate.next_functions)


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in a ``tree`` of nested lists, tuples and dicts."""
    found: list[Tensor] = []
    _collect(tree, found)
    return found


def _collect(tree: Any, found: list[Tensor]) -> None:
    """Append the tensors in ``tree`` to ``found``. It runs several times for every operation of a model."""
    if isinstance(tree, Tensor):
        found.append(tree)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            # Numbers are most of what operations are given.
            if type(item) not in _NUMBERS:
                _collect(item, found)
    elif isinstance(tree, dict):
        for item in tree.values():
            _collect(item, found)


_NUMBERS = (int, float, bool, type(None))


def swapped(tree: Any, old: Any, new: Any) -> Any:
    """Nested lists, tuples and dicts with one object in place of another; the original is not changed.

    Args:
        tree: the lists, tuples and dicts.
        old: the object that goes, by identity.
        new: the object in its place.
    """
    if tree is old:
        return new
    # Named tuples (torch.Size, results) are left as they are: they are not made from one iterable.
    if type(tree) in (list, tuple):
        return type(tree)(swapped(item, old, new) for item in tree)
    if isinstance(tree, dict):
        return {key: swapped(item, old, new) for key, item in tree.items()}
    return tree
