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
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError, UnsupportedOp
from . import operations as ops
from .backward_formulas import Invocation, guided, rescale
from .backward_graph import InputGraph
from .hooks import attached
from .inspection import hidden, quantised

RULES: dict[str, Callable[..., Any]] = {"guided": guided, "rescale": rescale}
REMEDY = {
    "guided": "leave guided_backprop out, or use integrated_gradients",
    "rescale": "leave deeplift out, or use integrated_gradients",
}
CHECKPOINTS = "switch gradient checkpointing off, e.g. model.set_grad_checkpointing(False)"


@dataclass
class Call:
    """An activation that ran.

    Args:
        op: the operation's name without underscores.
        form: "in-place", else "module" (a module without children), "method" or "functional".
        module: qualified name of the innermost module executing; "" is the model itself, None unknown.
        count: how many times it ran.
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
        rule: "guided", "rescale" or None.
        module: the model that runs, for names in messages and to find hidden operations. Not changed; hooks are removed.

    Yields:
        the activations seen so far, in order of first execution.

    Raises:
        UnsupportedOp: for an operation without a right rule, and when "guided" met no rectifier.
        InputError: for rows not in two halves, and gradients that keep their graph but are taken after the context.

    Not checked: that halves along the first axis stay halves under indexing; moving or joining along it is refused.
    """
    if rule is not None and rule not in RULES:
        raise InputError(f"rule: 'guided', 'rescale' or None, got {rule!r}")
    mode = RuleMode(rule, module)
    submodules = [] if module is None else list(module.named_modules())
    watched = [(name, child) for name, child in submodules if not isinstance(child, torch.jit.ScriptModule)]
    entering = [(child, mode.enter(name)) for name, child in watched]
    leaving = [(child, mode.leave) for _, child in watched]
    try:
        with attached(entering, leaving), mode:
            yield mode.calls
            # Not after an error inside, which says more.
            mode.finish()
    finally:
        mode.close()


def survey(module: nn.Module, run: Callable[[], Any]) -> list[Call]:
    """The activations that a forward pass goes through, in order of first execution.

    Args:
        module: the model.
        run: runs it once, without arguments.
    """
    with applied(None, module) as calls:
        run()
    return calls


class RuleMode(TorchFunctionMode):
    """Sees every torch function that runs, and lets a rule answer for those that depend on the input.

    Args:
        rule: "guided", "rescale", or None to observe only.
        module: the model that runs; None: unknown.

    Attributes:
        calls: the activations seen so far.
        running: (name, module) of the modules executing, the innermost last.
        rows: of the batch, 0 before it is known.
        rectifiers: how many the rule was applied to.
    """

    def __init__(self, rule: str | None, module: nn.Module | None):
        super().__init__()
        self.rule = rule
        self.module = module
        self.calls: list[Call] = []
        self.running: list[tuple[str, nn.Module]] = []
        self.rows = 0
        self.rectifiers = 0
        self.graph = InputGraph()
        self._active = True  # inside the context
        self._used = False  # a gradient was taken inside it
        self._bypassed = False  # our own arithmetic is running, which the rule must not see
        self._met_gradient = False
        if rule is not None and module is not None:
            self._refuse_hidden(module)

    def _refuse_hidden(self, module: nn.Module) -> None:
        """Refuse a model with submodules whose operations cannot be seen or have no gradient."""
        for name, child in module.named_modules():
            where = f"module {name or type(child).__name__!r}"
            kind = hidden(child)
            if kind:
                self.refuse(f"{where} is {kind}", "pass the original module")
            if quantised(child):
                self.refuse(
                    f"{where} is quantised, and no gradient passes", "use the float model, or methods='black_box'"
                )

    # -- life ----------------------------------------------------------------------------------------------------------

    def enter(self, name: str) -> Callable:
        """A forward pre-hook that says that the submodule ``name`` begins."""

        def hook(module: nn.Module, args: Any) -> None:
            self.running.append((name, module))

        return hook

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """A forward hook that says that a submodule has ended, and refuses outputs made by operations unseen.

        Args:
            module: the submodule.
            args: its inputs.
            output: what it returned.
        """
        if self.rule is not None and self._active:
            for tensor in ops.tensors_in(output):
                self._check_seen(tensor)
        self.running.pop()

    def finish(self) -> None:
        """Raise where a rule has had nothing to do, and what it gave would be the plain gradient."""
        if self.rule is not None and not self._met_gradient:
            raise InputError(f"{self.rule}: no gradient to change; run with grad enabled, on rows that require it")
        if self.rule == "guided" and not self.rectifiers:
            self.refuse("no rectifier (relu, relu6, clamp(min=0)) was met, the result would equal saliency")

    def close(self) -> None:
        """From here on the mode does nothing, also if an interrupt left it in force."""
        self._active = False
        self.running = []
        self.graph.clear()

    @property
    def within_model(self) -> bool:
        """Whether the model is executing, as far as is known."""
        return bool(self.running) or self.module is None

    def in_force(self) -> bool:
        """Whether gradients taken now obey the rule: inside the context, or after it if none was taken inside."""
        if self._active:
            self._used = True
        # Grad mode within a backward pass is what create_graph says.
        elif not self._used and torch.is_grad_enabled():
            raise InputError(
                f"{self.rule}: take a gradient with create_graph=True inside `with applied(…)`, not after it"
            )
        return self._active or not self._used

    @contextlib.contextmanager
    def bypassed(self) -> Iterator[None]:
        """Operations inside run as they are."""
        before = self._bypassed
        self._bypassed = True
        try:
            yield
        finally:
            self._bypassed = before

    def require_halves(self) -> None:
        """Raise InputError for an odd number of rows."""
        if self.rows % 2:
            raise InputError(f"rescale: rows must be cat([x; baseline]) in two halves, got {self.rows} rows")

    def refuse(self, what: str, remedy: str | None = None) -> NoReturn:
        """Raise UnsupportedOp: ``what`` is wrong in the module that is executing, and ``remedy`` helps (None: the rule's)."""
        where = ""
        if self.running:
            name, module = self.running[-1]
            where = f" in module {name!r} ({type(module).__name__})"
        raise UnsupportedOp(f"{self.rule}: {what}{where}; {remedy or REMEDY[str(self.rule)]}")

    def _check_seen(self, tensor: Tensor) -> None:
        """Refuse a tensor that depends on the input and that no call seen here has made."""
        if not self.graph.unseen(tensor):
            return
        assert tensor.grad_fn is not None
        name = tensor.grad_fn.name()
        # A forward pass within a backward pass: a checkpoint that runs its part of the model again.
        within_backward = torch._C._current_graph_task_id() != -1
        if within_backward or name.startswith("Checkpoint"):
            self.refuse(
                "gradient checkpointing runs a part of the model where its operations cannot be seen", CHECKPOINTS
            )
        if isinstance(tensor.grad_fn, torch.autograd.function.BackwardCFunction):
            self.refuse(f"{name!r} is a custom autograd function, which hides its ops")
        self.refuse(f"{name!r} is TorchScript, compiled or a custom operator, which hides its ops")

    # -- one call ------------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, in_place = ops.identify(func, kwargs)
        # torch.autograd.grad and backward come here too; what they run is the backward pass, which is no part of the model.
        if name is None or self._bypassed or not self._active or name in ("grad", "backward"):
            return func(*args, **kwargs)
        if name in ops.ACTIVATIONS:
            self._record(name, func, in_place)
        if self.rule is None:
            return func(*args, **kwargs)

        # Of view_as(other) the result does not depend on other's values.
        read = (args[:1], {}) if name in ops.SHAPES else (args, kwargs)
        given = ops.tensors_in(read)
        for tensor in given:
            self._check_seen(tensor)
        live = [tensor for tensor in given if self.graph.depends(tensor)]
        if live and torch.is_grad_enabled():
            self._met_gradient = True
            self._count_rows(name, live[0])
            out = RULES[self.rule](self, Invocation(name, func, args, kwargs, in_place, live))
        else:
            out = func(*args, **kwargs)
        # An iterator can be gone through once only: so it is, and the caller gets a new one.
        if name == "iter":
            rows = list(out)
            self._remember(name, args, in_place, given, live, rows)
            return iter(rows)
        self._remember(name, args, in_place, given, live, out)
        return out

    def _count_rows(self, name: str, tensor: Tensor) -> None:
        """The first tensor that the model works on says how many rows there are; joins come before it, [x; baseline]."""
        if not self.rows and tensor.ndim and self.within_model and name not in ops.JOINS:
            self.rows = len(tensor)

    def _remember(
        self, name: str, args: tuple, in_place: bool, given: list[Tensor], live: list[Tensor], out: Any
    ) -> None:
        """Take note of what a call has made; refuse a gradient mixed with values that vary with the input without one.

        Args:
            name: of the operation.
            args: the call's positional arguments.
            in_place: whether it wrote to the first of them.
            given: the tensors that it read.
            live: those of them that depend on the input.
            out: what it returned.
        """
        # The first argument too: an in-place call gives it a new node.
        for tensor in ops.tensors_in((out, args[:1])):
            self.graph.add(tensor)
        varying = any(id(tensor) in self.graph.frozen for tensor in given)
        written = args[:1] if in_place else ()
        # DeepLIFT compares two rows, between which such values differ. Guided backpropagation looks at one row, where a
        # constant factor does no harm, but a choice made by comparison may be a rectifier.
        refused = varying and (self.rule == "rescale" or name in ("where", "masked_fill"))
        for tensor in ops.tensors_in((out, written)):
            if not tensor.requires_grad and (live or varying) and name not in ops.EMPTY:
                self.graph.frozen[id(tensor)] = tensor
            elif tensor.requires_grad and refused:
                self.refuse(f"{name!r} with a comparison, an index or a detached value made from the input")

    def _record(self, name: str, func: Callable, in_place: bool) -> None:
        """Count an activation.

        Args:
            name: of the operation.
            func: the function that was called.
            in_place: whether it writes to its first argument.
        """
        module: str | None = None
        is_leaf = False
        if self.running:
            module, inner = self.running[-1]
            is_leaf = next(inner.children(), None) is None
        if in_place:
            form = "in-place"
        elif is_leaf:
            form = "module"
        # x.relu() comes as the attribute of Tensor, torch.relu(x) as another function of that name.
        elif getattr(Tensor, getattr(func, "__name__", ""), None) == func:
            form = "method"
        else:
            form = "functional"
        for call in self.calls:
            if (call.op, call.form, call.module) == (name, form, module):
                call.count += 1
                return
        self.calls.append(Call(name, form, module))
