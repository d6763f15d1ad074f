"""Backward passes with another rule at the activations: guided backpropagation, and DeepLIFT's rescale rule.

One mechanism for both, a mode that sees every torch function while the model runs: an ``nn.ReLU``, ``F.relu(x)``,
``x.relu()``, ``x.relu_()``, ``x.clamp(min=0)``, a module used twice. The model is not changed, nor are the values it
computes. What the mode cannot treat rightly raises :class:`UnsupportedOp` naming the operation, never a wrong number:
operations without a rule, and operations it cannot see (TorchScript, ``torch.compile``, custom autograd functions), which
it recognises because a tensor turns up that no call it saw has made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError, UnsupportedOp
from . import operations as ops
from .hooks import attached
from .inspection import hidden, quantised

REMEDY = {
    "guided": "leave guided_backprop out, or use integrated_gradients",
    "rescale": "leave deeplift out, or use integrated_gradients",
}
LAST = (
    "where it ends the model, explain the logits: a model without its last softmax, with kind='logit'; elsewhere leave "
    "deeplift out, or use integrated_gradients"
)
OUTSIDE = "explain the logits, with kind='logit'"
CHECKPOINTS = "switch gradient checkpointing off, e.g. model.set_grad_checkpointing(False)"


@dataclass
class Call:
    """An activation that ran ``count`` times.

    ``module``: qualified name of the innermost module executing ("" is the model itself, None unknown). ``form``:
    "in-place", else "module" (a module without children), "method" or "functional".
    """

    op: str
    form: str
    module: str | None
    count: int = 1


@contextlib.contextmanager
def applied(rule: str | None, module: nn.Module | None = None) -> Iterator[list[Call]]:
    r"""Run a forward pass inside; its gradients then follow ``rule``.

    - ``"guided"``: at each rectifier y = max(0, x), possibly capped, ∂f/∂x := 1[x > 0] · max(0, ∂f/∂y) (Springenberg et
      al. 2015, arXiv 1412.6806). Sigmoid, tanh, softmax and hard sigmoid keep their derivative, like all linear parts.
    - ``"rescale"``: run on rows cat([x; baseline]). At each elementwise activation ∂f/∂x := Δy/Δx · ∂f/∂y, Δ being the row
      minus its partner in the other half (Shrikumar et al. 2017, arXiv 1704.02685), and the derivative at the midpoint
      where \|Δx\| ≤ √ε max(\|x\|, \|x'\|). At max pooling each window's Δy goes to its larger winner, divided by Δx there.
      Summed over features, gradient · (x − baseline) = f(x) − f(baseline), also where windows overlap. (Captum 0.9's
      DeepLift is not complete below max pooling in general: in a small CNN its sums were off by up to 0.18.)
    - None: only observe.

    A gradient taken inside the context obeys the rule, and after it the graph is the ordinary one, so that a loss of an
    attribution (``create_graph=True``) has exact gradients in the parameters. If none is taken inside, the rule stays in
    force for first-order gradients taken later. Take nothing but the attribution's gradient inside.

    Args:
        module: the model that runs, for names in messages and to find hidden operations. Not changed; hooks are removed.

    Yields:
        the activations seen so far, in order of first execution.

    Raises:
        UnsupportedOp: for an operation without a right rule, and when "guided" met no rectifier.
        InputError: for rows not in two halves, and gradients that keep their graph but are taken after the context.

    Not checked: that halves along the first axis stay halves under indexing; moving or joining along it is refused.
    """
    if rule not in (None, "guided", "rescale"):
        raise InputError(f"rule: 'guided', 'rescale' or None, got {rule!r}")
    mode = _Mode(rule, module)
    watched = [] if module is None else list(module.named_modules())
    seen = [(name, child) for name, child in watched if not isinstance(child, torch.jit.ScriptModule)]
    entering = [(child, mode.enter(name)) for name, child in seen]
    leaving = [(child, mode.leave) for _, child in seen]
    try:
        with attached(entering, leaving), mode:
            yield mode.calls
            mode.finish()
    finally:
        mode.close()


def survey(module: nn.Module, run: Callable[[], Any]) -> list[Call]:
    """The activations that ``run()``, a forward pass of ``module``, goes through."""
    with applied(None, module) as calls:
        run()
    return calls


class _Replace(torch.autograd.Function):
    """y, whose gradient goes to x through ``back(g, x, y)`` while the rule is in force, and else to y as ever."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, back: Callable[..., Tensor], mode: _Mode) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.back, ctx.mode = back, mode
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.mode.in_force():
            return None, g, None, None
        # The multiplier is made here, from x and y as they stand in the graph: with create_graph it is differentiable.
        with ctx.mode.quiet():
            return ctx.back(g, *ctx.saved_tensors), None, None, None


class _Mode(TorchFunctionMode):
    def __init__(self, rule: str | None, module: nn.Module | None):
        super().__init__()
        self.rule, self.calls, self.stack = rule, [], []  # type: ignore[var-annotated]
        self.open, self.used, self.busy = True, False, False
        self.module, self.rows, self.rectifiers, self.met = module, 0, 0, False
        self.made: set[Any] = set()  # graph nodes that came out of calls seen here
        self.reaches: dict[Any, bool] = {}  # graph node → does it depend on the input
        self.frozen: dict[int, Tensor] = {}  # depend on the input without a gradient; held, so that ids last
        with torch.enable_grad():
            self.start = torch.zeros((), requires_grad=True).clone().grad_fn._sequence_nr()  # type: ignore[union-attr]
        if rule is not None and module is not None:
            for name, child in module.named_modules():
                where = f"module {name or type(child).__name__!r}"
                if kind := hidden(child):
                    self.refuse(f"{where} is {kind}", "pass the original module")
                if quantised(child):
                    self.refuse(
                        f"{where} is quantised, and no gradient passes", "use the float model, or methods='black_box'"
                    )

    # -- life ----------------------------------------------------------------------------------------------------------

    def enter(self, name: str) -> Callable:
        def hook(module: nn.Module, args: Any) -> None:
            self.stack.append((name, module))

        return hook

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.rule is not None and self.open:
            for tensor in ops.tensors_in(output):
                self.check_seen(tensor)
        self.stack.pop()

    def finish(self) -> None:
        if self.rule is not None and not self.met:
            raise InputError(f"{self.rule}: no gradient to change; run with grad enabled, on rows that require it")
        if self.rule == "guided" and not self.rectifiers:
            self.refuse("no rectifier (relu, relu6, clamp(min=0)) was met, the result would equal saliency")

    def close(self) -> None:
        """From here on the mode does nothing, also if an interrupt left it in force."""
        self.open = False
        self.made, self.reaches, self.frozen, self.stack = set(), {}, {}, []

    def in_force(self) -> bool:
        if self.open:
            self.used = True
        elif not self.used and torch.is_grad_enabled():
            raise InputError(
                f"{self.rule}: take a gradient with create_graph=True inside `with applied(…)`, not after it"
            )
        return self.open or not self.used

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        before, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = before

    def refuse(self, what: str, remedy: str | None = None) -> NoReturn:
        where = f" in module {self.stack[-1][0]!r} ({type(self.stack[-1][1]).__name__})" if self.stack else ""
        raise UnsupportedOp(f"{self.rule}: {what}{where}; {remedy or REMEDY[str(self.rule)]}")

    # -- dependence on the input ---------------------------------------------------------------------------------------

    def depends(self, tensor: Tensor) -> bool:
        """Whether a gradient can reach the input: a leaf other than a parameter, or a graph older than the context."""
        if tensor.grad_fn is None:
            return tensor.requires_grad and not isinstance(tensor, nn.Parameter)
        todo = [tensor.grad_fn]
        while todo:
            node = todo[-1]
            if node not in self.reaches:
                parents = [parent for parent, _ in node.next_functions if parent is not None]
                if new := [parent for parent in parents if parent not in self.reaches and not self.older(node)]:
                    todo += new
                    continue
                leaf = getattr(node, "variable", None) if not parents else None
                self.reaches[node] = (
                    not isinstance(leaf, nn.Parameter)
                    if leaf is not None
                    else self.older(node) or any(self.reaches[parent] for parent in parents)
                )
            todo.pop()
        return self.reaches[tensor.grad_fn]

    def older(self, node: Any) -> bool:
        return node._sequence_nr() < self.start

    def check_seen(self, tensor: Tensor) -> None:
        """Refuse a tensor that no call seen here has made; in-place writes to a base give its views new nodes."""
        node = tensor.grad_fn
        if node is None or node in self.made or self.older(node) or not self.depends(tensor):
            return
        if tensor._is_view() and tensor._base.grad_fn in self.made:  # type: ignore[union-attr]
            return
        name = node.name()
        within_backward = torch._C._current_graph_task_id() != -1  # a checkpoint that runs the forward pass again
        if within_backward or name.startswith("Checkpoint"):
            self.refuse(
                "gradient checkpointing runs a part of the model where its operations cannot be seen", CHECKPOINTS
            )
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            self.refuse(f"{name!r} is a custom autograd function, which hides its ops")
        self.refuse(f"{name!r} is TorchScript, compiled or a custom operator, which hides its ops")

    # -- one call ------------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        raw = getattr(func, "__name__", str(func))
        if raw == "__get__":
            raw = func.__self__.__name__
            if raw not in ops.PROPERTIES:
                return func(*args, **kwargs)
        raw = raw.partition(".")[0]
        in_place = bool(kwargs.get("inplace")) or (raw.endswith("_") and not raw.endswith("__")) or raw == "__setitem__"
        name = raw.strip("_").removeprefix("special_")
        if self.busy or not self.open or name in ("grad", "backward"):
            return func(*args, **kwargs)
        if name in ops.ACTIVATIONS:
            self.record(name, func, in_place)
        if self.rule is None:
            return func(*args, **kwargs)

        given = list(ops.tensors_in((args[:1], {}) if name in ops.SHAPES else (args, kwargs)))
        for tensor in given:
            self.check_seen(tensor)
        live = [tensor for tensor in given if self.depends(tensor)]
        if live and torch.is_grad_enabled():
            self.met = True
            if not self.rows and live[0].ndim and (self.stack or self.module is None) and name not in ops.JOINS:
                self.rows = len(live[0])
            out = getattr(self, self.rule)(name, func, args, kwargs, in_place, live)
        else:
            out = func(*args, **kwargs)
        if name == "iter":
            out = list(out)
        found = list(ops.tensors_in((out, args[:1])))
        varying = [tensor for tensor in given if id(tensor) in self.frozen]
        for tensor in found:
            if tensor.grad_fn is not None:
                self.made.add(tensor.grad_fn)
                if tensor._is_view():
                    self.made.add(tensor._base.grad_fn)  # type: ignore[union-attr]
        for tensor in ops.tensors_in((out, args[:1] if in_place else ())):
            if not tensor.requires_grad and (live or varying) and name not in ops.EMPTY:
                self.frozen[id(tensor)] = tensor
            elif tensor.requires_grad and varying and (self.rule == "rescale" or name in ("where", "masked_fill")):
                self.refuse(f"{name!r} with a comparison, an index or a detached value made from the input")
        return iter(out) if name == "iter" else out

    def record(self, name: str, func: Callable, in_place: bool) -> None:
        module, inner = self.stack[-1] if self.stack else (None, None)
        if in_place:
            form = "in-place"
        elif inner is not None and next(inner.children(), None) is None:
            form = "module"
        else:
            form = "method" if getattr(Tensor, getattr(func, "__name__", ""), None) == func else "functional"
        for call in self.calls:
            if (call.op, call.form, call.module) == (name, form, module):
                call.count += 1
                return
        self.calls.append(Call(name, form, module))

    # -- the two rules -------------------------------------------------------------------------------------------------

    def guided(self, name: str, func: Any, args: tuple, kwargs: dict, in_place: bool, live: list[Tensor]) -> Any:
        if name in ops.LEAKY or (name == "threshold" and not ops.rectifies(name, args, kwargs)):
            self.refuse(f"{name!r} is no rectifier")
        if name.startswith("rnn_relu"):
            self.refuse(f"{name!r} hides its rectifiers")
        if name in ("maximum", "fmax") and len(live) == 1:
            self.refuse(f"{name!r} with a constant may be a rectifier in disguise", "write it as torch.relu")
        if name in ("mul", "multiply") and len(live) == 2 and (ops.gated(*live) or ops.gated(*live[::-1])):
            self.refuse(f"{name!r} of a tensor with its own gate (a swish written out) is no rectifier")
        if not ops.rectifies(name, args, kwargs):
            return func(*args, **kwargs)
        self.rectifiers += 1
        y = self.pure(func, args, kwargs, in_place, live[0])(live[0])

        def positive(g: Tensor) -> Tensor:
            if not self.in_force():
                return g
            with self.quiet():
                return g.clamp(min=0)

        y.register_hook(positive)
        return live[0].copy_(y) if in_place else y

    def rescale(self, name: str, func: Any, args: tuple, kwargs: dict, in_place: bool, live: list[Tensor]) -> Any:
        x = live[0]
        single = all(tensor is x for tensor in live)
        random = kwargs.get("training", args[2] if "dropout" in name and len(args) > 2 else False)
        if ("dropout" in name and random and kwargs.get("p", 1)) or (name == "rrelu" and random):
            self.refuse(f"{name!r} in training mode is random", "call model.eval()")
        if name == "batch_norm" and kwargs.get("training", args[5] if len(args) > 5 else False):
            self.refuse("'batch_norm' in training mode mixes the rows", "call model.eval()")
        square = name in ("mul", "multiply") and len(live) == 2
        inverse = name in ops.DIVISIONS and len(live) == 1 and (args[0] is not x or kwargs.get("rounding_mode"))
        if single and (name in ops.ELEMENTWISE or square or inverse):
            return self.elementwise(name, func, args, kwargs, in_place, x)
        if single and name in ops.MAX_POOLS:
            return self.max_pool(name, args, kwargs, x)
        if name in ops.JOINS and self.rows:  # before the model runs, [x; baseline] itself may be joined
            if kwargs.get("dim", args[1] if len(args) > 1 else 0) % (x.ndim + (name == "stack")) == 0:
                self.refuse(f"{name!r} along the batch axis")
        if name in ops.LINEAR or (name in ops.MULTILINEAR and len(live) == 1):
            out = func(*args, **kwargs)
            if name in ops.MOVES and (out.shape[0], out.stride(0)) != (x.shape[0], x.stride(0)):
                self.refuse(f"{name!r} moves the batch axis")
            return out
        out = func(*args, **kwargs)
        if not any(tensor.requires_grad for tensor in ops.tensors_in(out)):
            return out  # sizes, comparisons, argmax: no gradient to change
        why = " of tensors that both depend on the input" if name in ops.MULTILINEAR or name in ops.ELEMENTWISE else ""
        remedy = None
        if "softm" in name:
            remedy = LAST if self.stack or self.module is None else OUTSIDE
        self.refuse(f"no rescale rule for {name!r}{why}", remedy)

    def elementwise(self, name: str, func: Any, args: tuple, kwargs: dict, in_place: bool, x: Tensor) -> Tensor:
        self.check_rows(name, x)
        f = self.pure(func, args, kwargs, in_place, x)
        before = x.clone() if in_place else x
        y = f(before)
        if y.shape != x.shape:
            self.refuse(f"{name!r} broadcasts its input")
        if any(t is not x and t.ndim == x.ndim and len(t) > 1 for t in ops.tensors_in((args, kwargs))):
            self.refuse(f"{name!r} with a constant for each row")
        out = _Replace.apply(before, y, lambda g, x, y: g * _multiplier(f, x, y), self)
        return x.copy_(out) if in_place else out

    def max_pool(self, name: str, args: tuple, kwargs: dict, x: Tensor) -> Any:
        self.check_rows(name, x)
        base = name.removesuffix("_with_indices")
        if x.ndim != int(base[-2]) + 2:
            self.refuse(f"{name!r} without a batch axis")
        keep = kwargs.get("return_indices", False) or name != base
        options = {key: value for key, value in kwargs.items() if key != "return_indices"}
        y, index = getattr(nnf, f"{base}_with_indices")(*args, **options)

        def back(g: Tensor, x: Tensor, y: Tensor) -> Tensor:
            (a, b), (ya, yb), (ia, ib) = x.flatten(2).chunk(2), y.flatten(2).chunk(2), index.flatten(2).chunk(2)
            winner = torch.where(ya >= yb, ia, ib)
            dx, one = (a - b).gather(2, winner), torch.ones_like(ya)
            ratio = torch.where(dx == 0, one, (ya - yb) / torch.where(dx == 0, one, dx))
            g = g.flatten(2) * torch.cat([ratio, ratio])
            return torch.zeros_like(x).flatten(2).scatter_add(2, torch.cat([winner, winner]), g).view(x.shape)

        out = _Replace.apply(x, y, back, self)
        return (out, index) if keep else out

    def check_rows(self, name: str, x: Tensor) -> None:
        self.rows = self.rows or (len(x) if x.ndim else 1)
        if self.rows % 2:
            raise InputError(f"rescale: rows must be cat([x; baseline]) in two halves, got {self.rows} rows")
        if x.ndim == 0 or x.shape[0] % self.rows:
            self.refuse(f"{name!r} of shape {tuple(x.shape)}, whose first axis is not the batch of {self.rows} rows,")

    def pure(self, func: Any, args: tuple, kwargs: dict, in_place: bool, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The call as a function of x alone that writes to nothing."""
        if in_place and (not args or args[0] is not x):
            self.refuse(f"in-place {func.__name__!r} on a constant")

        # f must not hold x: after an in-place call x's graph leads to f, a cycle that no garbage collector sees.
        hole = object()
        args, kwargs = ops.swapped(args, x, hole), ops.swapped(kwargs, x, hole)

        def f(z: Tensor) -> Tensor:
            z = z.clone() if in_place else z
            return func(*ops.swapped(args, hole, z), **ops.swapped(kwargs, hole, z))

        return f


# -- small parts -------------------------------------------------------------------------------------------------------


def _multiplier(f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Δy/Δx; f' at the midpoint where Δx is lost in rounding. The bound is relative, so it never straddles a kink at 0."""
    (a, b), (ya, yb), graph = x.chunk(2), y.chunk(2), torch.is_grad_enabled()
    small = (a - b).abs() <= torch.finfo(x.dtype).eps ** 0.5 * torch.maximum(a.abs(), b.abs())
    with torch.enable_grad():
        middle = (a + b) / 2
        middle = middle if graph else middle.detach().requires_grad_()
        (slope,) = torch.autograd.grad(f(middle).sum(), middle, create_graph=graph)
    ratio = torch.where(small, slope, (ya - yb) / torch.where(small, torch.ones_like(a), a - b))
    return torch.cat([ratio, ratio])
