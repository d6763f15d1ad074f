"""The two backward rules, one operation at a time: guided backpropagation, and DeepLIFT's rescale rule.

:mod:`.backward_rules` says what the rules are and shows them every torch function that a model calls. Here is what they do
with one such call: run it as it is, run it with another gradient, or refuse it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.nn.functional as nnf
from torch import Tensor

from . import operations as ops

if TYPE_CHECKING:
    from .backward_rules import RuleMode

LAST_SOFTMAX = (
    "where it ends the model, explain the logits: a model without its last softmax, with kind='logit'; elsewhere leave "
    "deeplift out, or use integrated_gradients"
)
OUTER_SOFTMAX = "explain the logits, with kind='logit'"


@dataclass(frozen=True)
class Invocation:
    """One call of a torch function.

    Args:
        name: the operation's name without underscores, as in :mod:`.operations`.
        func: the function that was called.
        args: its positional arguments.
        kwargs: its keyword arguments.
        in_place: whether it writes to its first argument.
        live: the tensors among its arguments that depend on the input; at least one.
    """

    name: str
    func: Any
    args: tuple
    kwargs: dict
    in_place: bool
    live: list[Tensor]

    def run(self) -> Any:
        """The call as it was made."""
        return self.func(*self.args, **self.kwargs)

    def argument(self, place: int, key: str, default: Any) -> Any:
        """One of its arguments.

        Args:
            place: where it stands among the positional ones.
            key: its keyword.
            default: its value where it is not given.
        """
        return ops.argument(self.args, self.kwargs, place, key, default)


# -- guided backpropagation --------------------------------------------------------------------------------------------


def guided(mode: RuleMode, call: Invocation) -> Any:
    """Rectifiers let only positive gradients back; everything else keeps its derivative.

    Args:
        mode: the mode that has seen the call.
        call: what was called.

    Returns:
        what the call returns.

    Raises:
        UnsupportedOp: the operation may hide a rectifier, or the rule is not defined for it.
    """
    _refuse_unguided(mode, call)
    if not ops.rectifies(call.name, call.args, call.kwargs):
        return call.run()
    mode.rectifiers += 1
    x = call.live[0]
    _refuse_written_constant(mode, call, x)
    # A hook on a view that is written to is not called when the gradient comes through the view's base.
    is_written_view = call.in_place and x._is_view()
    y = _as_function(mode, call, x)(x) if is_written_view else call.run()

    def positive(gradient: Tensor) -> Tensor:
        if not mode.in_force():
            return gradient
        # The clamp would be seen as a rectifier itself, since the mode is active while gradients are taken.
        with mode.bypassed():
            return gradient.clamp(min=0)

    # The hook changes ∂f/∂y, before the rectifier's own derivative 1[x > 0] is applied: together they are the rule.
    y.register_hook(positive)
    if is_written_view:
        return x.copy_(y)
    return y


def _refuse_unguided(mode: RuleMode, call: Invocation) -> None:
    """Refuse what may be a rectifier that is not recognised, or an activation for which the rule is not defined."""
    name = call.name
    if name in ops.LEAKY or (name == "threshold" and not ops.rectifies(name, call.args, call.kwargs)):
        mode.refuse(f"{name!r} is no rectifier")
    if name.startswith("rnn_relu"):
        mode.refuse(f"{name!r} hides its rectifiers")
    if name in ("maximum", "fmax") and len(call.live) == 1:
        mode.refuse(f"{name!r} with a constant may be a rectifier in disguise", "write it as torch.relu")
    if name in ("mul", "multiply") and len(call.live) == 2:
        first, second = call.live
        if ops.gated(first, second) or ops.gated(second, first):
            mode.refuse(f"{name!r} of a tensor with its own gate (a swish written out) is no rectifier")


# -- DeepLIFT's rescale rule -------------------------------------------------------------------------------------------


def rescale(mode: RuleMode, call: Invocation) -> Any:
    """Elementwise activations and max pooling get multipliers, affine operations run as they are, the rest is refused.

    Args:
        mode: the mode that has seen the call.
        call: what was called.

    Returns:
        what the call returns.

    Raises:
        UnsupportedOp: there is no rule for the operation, or it moves or mixes the rows.
    """
    name = call.name
    x = call.live[0]
    _refuse_training(mode, call)
    # x · x has two live arguments, but one input.
    one_input = all(tensor is x for tensor in call.live)
    if one_input and _is_elementwise(call):
        return _rescale_elementwise(mode, call, x)
    if one_input and name in ops.MAX_POOLS:
        return _rescale_max_pool(mode, call, x)
    if name in ops.JOINS:
        _refuse_join_of_rows(mode, call, x)
    out = call.run()
    # The multiplier of an affine operation is its derivative, so the gradient is the right one already.
    if name in ops.LINEAR or (name in ops.MULTILINEAR and len(call.live) == 1):
        if name in ops.MOVES:
            _refuse_moved_rows(mode, name, x, out)
        return out
    # Sizes, comparisons, argmax: no gradient to change.
    if not any(tensor.requires_grad for tensor in ops.tensors_in(out)):
        return out
    _refuse_without_rule(mode, name)


def _refuse_join_of_rows(mode: RuleMode, call: Invocation, x: Tensor) -> None:
    """Refuse a join along the batch axis, after which the rows would not be in two halves."""
    # Before the model runs, [x; baseline] itself may be joined.
    if not mode.rows:
        return
    axes = x.ndim + 1 if call.name == "stack" else x.ndim
    if call.argument(1, "dim", 0) % axes == 0:
        mode.refuse(f"{call.name!r} along the batch axis")


def _refuse_moved_rows(mode: RuleMode, name: str, x: Tensor, out: Tensor) -> None:
    """Refuse a result whose first axis is not that of its argument."""
    # An axis that moves takes its stride along: a transposed square batch has the same shape, and another stride.
    if (out.shape[0], out.stride(0)) != (x.shape[0], x.stride(0)):
        mode.refuse(f"{name!r} moves the batch axis")


def _refuse_without_rule(mode: RuleMode, name: str) -> NoReturn:
    """Refuse an operation for which the rescale rule has no answer."""
    why = ""
    if name in ops.MULTILINEAR or name in ops.ELEMENTWISE:
        why = " of tensors that both depend on the input"
    remedy = None
    if "softm" in name:
        remedy = LAST_SOFTMAX if mode.within_model else OUTER_SOFTMAX
    mode.refuse(f"no rescale rule for {name!r}{why}", remedy)


def _refuse_training(mode: RuleMode, call: Invocation) -> None:
    """Refuse layers in training mode: the halves x and baseline would get other noise, or mix."""
    name = call.name
    random = False
    if "dropout" in name:
        # torch.dropout calls the argument "train", nn.functional "training". With p = 0 nothing is drawn.
        training = call.argument(2, "training", call.kwargs.get("train", False))
        random = training and call.kwargs.get("p", 1)
    elif name == "rrelu":
        random = call.argument(3, "training", False)
    if random:
        mode.refuse(f"{name!r} in training mode is random", "call model.eval()")
    if name == "batch_norm" and call.argument(5, "training", False):
        mode.refuse("'batch_norm' in training mode mixes the rows", "call model.eval()")


def _is_elementwise(call: Invocation) -> bool:
    """Whether a call with one live tensor works element by element and is not affine."""
    if call.name in ops.ELEMENTWISE:
        return True
    if call.name in ("mul", "multiply"):
        return len(call.live) == 2  # x · x
    if call.name in ops.DIVISIONS and len(call.live) == 1:
        divides_by_x = call.args[0] is not call.live[0]
        rounds = bool(call.kwargs.get("rounding_mode"))
        return divides_by_x or rounds
    return False


def _rescale_elementwise(mode: RuleMode, call: Invocation, x: Tensor) -> Tensor:
    """The call's own result, whose gradient in ``x`` (2n, …) is the multiplier Δy/Δx."""
    _check_rows(mode, call.name, x)
    function = _as_function(mode, call, x)
    # The multiplier evaluates the function at x and at the baseline alike, so a constant must be the same for both.
    for other in ops.tensors_in((call.args, call.kwargs)):
        if other is not x and other.ndim == x.ndim and len(other) > 1:
            mode.refuse(f"{call.name!r} with a constant for each row")

    name = call.name

    def backward(gradient: Tensor, x: Tensor, y: Tensor) -> Tensor:
        multiplier = _multiplier(name, function, x, y)
        # The same for the two halves.
        return (gradient.unflatten(0, (2, -1)) * multiplier).flatten(0, 1)

    # The multiplier needs x as it was before an in-place call writes to it.
    before = x.clone() if call.in_place else x
    out = _ReplacedGradient.apply(before, function, backward, mode)
    if out.shape != x.shape:
        mode.refuse(f"{call.name!r} broadcasts its input")
    if call.in_place:
        return x.copy_(out)
    return out


def _rescale_max_pool(mode: RuleMode, call: Invocation, x: Tensor) -> Any:
    """The call's own result, whose gradient goes to one winner of each window (:func:`_max_pool_gradient`)."""
    name = call.name
    _check_rows(mode, name, x)
    base = name.removesuffix("_with_indices")
    spatial_axes = int(base[-2])  # the 2 of max_pool2d
    if x.ndim != spatial_axes + 2:
        mode.refuse(f"{name!r} without a batch axis")
    with_indices = call.kwargs.get("return_indices", False) or name != base
    options = {key: value for key, value in call.kwargs.items() if key != "return_indices"}
    pooling = replace(call, func=getattr(nnf, f"{base}_with_indices"), kwargs=options)
    pooled, index = _ReplacedGradient.apply(x, _as_function(mode, pooling, x), _max_pool_gradient, mode)
    if with_indices:
        return pooled, index
    return pooled


def _max_pool_gradient(gradient: Tensor, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """Each window's Δy goes to the larger of its two winners, that at x and that at the baseline, divided by Δx there.

    Captum 0.9 sends it to x's winner and the baseline's apart, and its sums over features do not come out.

    Args:
        gradient: ∂f/∂y, of the shape of y.
        x: (2n, C, *spatial), what was pooled: inputs, then baselines.
        y: (2n, C, *pooled), the maxima.
        index: of each maximum, its place among the flattened spatial axes.
    """
    x_input, x_baseline = x.flatten(2).chunk(2)
    y_input, y_baseline = y.flatten(2).chunk(2)
    index_input, index_baseline = index.flatten(2).chunk(2)
    winner = torch.where(y_input >= y_baseline, index_input, index_baseline)
    delta_x = (x_input - x_baseline).gather(2, winner)
    delta_y = y_input - y_baseline
    # Where Δx = 0 at the larger winner, Δy = 0 too: any multiplier adds up, and max pooling's own is 1.
    one = torch.ones_like(delta_y)
    # Divided by 1 there, not by 0: torch.where passes zero times the gradient of the branch not taken, and 0 · ∞ is NaN.
    divisor = torch.where(delta_x == 0, one, delta_x)
    ratio = torch.where(delta_x == 0, one, delta_y / divisor)
    shares = gradient.flatten(2) * torch.cat([ratio, ratio])
    # Windows may overlap: an element that wins several gets the sum.
    both_winners = torch.cat([winner, winner])
    return torch.zeros_like(x).flatten(2).scatter_add(2, both_winners, shares).view(x.shape)


def _multiplier(name: str, function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """(n, …): Δy/Δx; the derivative at the midpoint where Δx is lost in rounding.

    The bound √ε max(|x|, |x'|) is relative, so the two sides of a kink at 0 are never taken for the same point.

    Args:
        name: of the elementwise operation.
        function: the operation.
        x: (2n, …), inputs, then baselines.
        y: its values there.
    """
    x_input, x_baseline = x.chunk(2)
    y_input, y_baseline = y.chunk(2)
    delta_x = x_input - x_baseline
    delta_y = y_input - y_baseline
    largest = torch.maximum(x_input.abs(), x_baseline.abs())
    small = delta_x.abs() <= torch.finfo(x.dtype).eps ** 0.5 * largest
    slope = _slope_between(name, function, x_input, x_baseline)
    # Within a backward pass grad mode is what create_graph says: whether the multiplier is to be differentiated in turn.
    # torch.where passes zero times the gradient of the branch not taken: a division by zero there would give NaN.
    if torch.is_grad_enabled():
        delta_x = torch.where(small, torch.ones_like(delta_x), delta_x)
    return torch.where(small, slope, delta_y / delta_x)


def _slope_between(name: str, function: Callable[[Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
    """(n, …): the derivative of an elementwise ``function`` halfway between two points (n, …)."""
    if name == "relu":  # the commonest by far: no pass backward through it
        return (first + second > 0).to(first.dtype)
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        middle = (first + second) / 2
        if not graph:
            middle = middle.detach().requires_grad_()
        # Of a sum of elementwise values: the slope at each element.
        (slope,) = torch.autograd.grad(function(middle).sum(), middle, create_graph=graph)
    return slope


def _check_rows(mode: RuleMode, name: str, x: Tensor) -> None:
    """Refuse a tensor whose first axis is not that of the batch, or a batch that is not two halves."""
    if not mode.rows:
        mode.rows = len(x) if x.ndim else 1
    mode.require_halves()
    # A multiple is allowed: windows or heads of each row, folded into the first axis, keep the halves apart.
    if x.ndim == 0 or x.shape[0] % mode.rows:
        mode.refuse(f"{name!r} of shape {tuple(x.shape)}, whose first axis is not the batch of {mode.rows} rows,")


# -- both --------------------------------------------------------------------------------------------------------------


class _ReplacedGradient(torch.autograd.Function):
    """function(x), whose gradient is back(gradient, x, y[, index]) while the rule is in force, and else the function's own.

    Only x and y are kept, and no graph of the function: little memory.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, function: Callable[[Tensor], Any], back: Callable[..., Tensor], mode: RuleMode
    ) -> Any:
        found = function(x)
        y, *index = found if isinstance(found, tuple) else (found,)
        ctx.save_for_backward(x, y, *index)
        ctx.mark_non_differentiable(*index)
        ctx.set_materialize_grads(False)
        ctx.function = function
        ctx.back = back
        ctx.mode = mode
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        if gradient is None:
            return None, None, None, None
        in_force = ctx.mode.in_force()
        # The multiplier is made here, from x and y as they stand in the graph: with create_graph it is differentiable.
        with ctx.mode.bypassed():
            if in_force:
                found = ctx.back(gradient, *ctx.saved_tensors)
            else:
                found = _own_gradient(ctx.function, ctx.saved_tensors[0], gradient)
        # One gradient for each argument of forward.
        return found, None, None, None


def _own_gradient(function: Callable[[Tensor], Any], x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient that a function of x alone has without any rule, given that in its result."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if not graph:
            x = x.detach().requires_grad_()
        found = function(x)
        y = found[0] if isinstance(found, tuple) else found
        (own,) = torch.autograd.grad(y, x, gradient, create_graph=graph)
    return own


def _refuse_written_constant(mode: RuleMode, call: Invocation, x: Tensor) -> None:
    """Refuse an in-place call on anything but ``x``: that would depend on the input from then on, for all who hold it."""
    if call.in_place and (not call.args or call.args[0] is not x):
        mode.refuse(f"in-place {call.func.__name__!r} on a constant")


def _as_function(mode: RuleMode, call: Invocation, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The call as a function of x alone that writes to nothing."""
    func = call.func
    in_place = call.in_place
    _refuse_written_constant(mode, call, x)

    # The function must not hold x: after an in-place call x's graph leads to the function, a cycle that no garbage
    # collector sees. So x's places among the arguments are held open by a marker.
    marker = object()
    args = ops.swapped(call.args, x, marker)
    kwargs = ops.swapped(call.kwargs, x, marker)

    def function(z: Tensor) -> Tensor:
        if in_place:
            z = z.clone()
        return func(*ops.swapped(args, marker, z), **ops.swapped(kwargs, marker, z))

    return function
