"""How an objective's own evaluations see the model, and how they stay within ``max_batch`` rows.

The *task pass* is the training step's own forward pass: the model as given, in the caller's mode. Every other evaluation is
a guest: it sees the module inside DistributedDataParallel, works on copies of the buffers (running statistics move in the
task pass only), draws dropout from a stream of its own, and asks for attention that can be differentiated twice.

Rows N = B · per are numbered input by input. A quantity is given as ``rows``: (numbers (n,), keep the graph?) → (n, …), and
``finish``: (values of all rows of some inputs, these inputs) → (), the sum over them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import InputError
from ..model.outputs import Outputs
from ..model.score import _layout
from ..statistics.keys import Key

Rows = Callable[[Tensor, bool], Tensor]


Finish = Callable[[Tensor, Tensor], Tensor]


Gradients = list[Tensor | None]


@dataclass(frozen=True)
class Passes:
    """One call of an objective: ``model`` as given and ``bare``, ``x`` (B, *F) detached, ``y`` (B, …) or None, ``ids`` (B,)."""

    model: nn.Module
    bare: nn.Module
    x: Tensor
    y: Tensor | None
    ids: Tensor
    step: int
    key: Key
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    max_batch: int

    def __len__(self) -> int:
        return len(self.x)

    @property
    def labels(self) -> Tensor:
        if self.y is None:
            raise InputError("y: this objective needs the labels, got None")
        return self.y

    @property
    def parameters(self) -> list[Tensor]:
        return [p for p in self.bare.parameters() if p.requires_grad]

    # -- evaluating ----------------------------------------------------------------------------------------------------

    def task(self, x: Tensor) -> Tensor:
        """(B, *F) → (B,): the losses of the task pass."""
        return self._losses(_checked(self.model(x), len(x)), self.labels)

    def outputs(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """(n, *F) → (n, …) as a guest; their ``numbers`` (n,) tell chunks apart, whose dropout is not the same."""
        live = any(module.training for module in self.bare.modules())
        key = self.key / (f"passes/{self.step}/{int(numbers[0])}" if live else "passes")
        with _seeded(rows.device, key), sdpa_kernel(SDPBackend.MATH):
            # A copy: models that start with an in-place operation must not write to a leaf.
            rows = rows.clone(memory_format=_layout(self.bare, rows))
            if not live:
                return _checked(self.bare(rows), len(rows))
            copies = {name: buffer.clone() for name, buffer in self.bare.named_buffers()}
            return _checked(functional_call(self.bare, copies, (rows,)), len(rows))

    def losses(self, rows: Tensor, owner: Tensor, numbers: Tensor) -> Tensor:
        """(n, *F) that belong to the inputs ``owner`` (n,) → (n,)."""
        return self._losses(self.outputs(rows, numbers), self.labels[owner])

    def gradient(self, rows: Tensor, owner: Tensor, numbers: Tensor, graph: bool, of: str = "loss") -> Tensor:
        """(n, *F): the gradient of each row's loss, or of its own output ("output"), with respect to that row."""
        with torch.enable_grad():
            rows = rows if rows.requires_grad else rows.detach().requires_grad_()
            if of == "loss":
                value = self.losses(rows, owner, numbers)
            else:
                value = self._own(self.outputs(rows, numbers), owner)
            (found,) = torch.autograd.grad(value.sum(), rows, create_graph=graph)
        return wide(found)

    def path(self, start: Tensor, end: Tensor, points: int, of: str = "loss") -> Rows:
        """Gradients at start + (k/m)(end − start), k = 1 … m = ``points``; start and end (B · r, *F), r paths per input."""
        paths = len(end) // len(self)

        def rows(numbers: Tensor, graph: bool) -> Tensor:
            which, k = numbers // points, numbers % points + 1
            share = k.to(end.dtype).view(-1, *[1] * (end.ndim - 1)) / points
            there = start[which] + share * (end - start)[which]
            return self.gradient(there, which // paths, numbers, graph, of)

        return rows

    def around(self, radius: float | Tensor, samples: int, stream: str) -> Callable[[Tensor], Tensor]:
        """Rows by number: of every 1 + ``samples``, the input itself and draws from x + U(−radius, radius)."""

        def rows(numbers: Tensor) -> Tensor:
            owner, sample = numbers // (1 + samples), numbers % (1 + samples)
            x = self.x[owner]
            number = self.step * samples + (sample - 1).clamp(min=0)
            u = (self.key / stream).uniform(self.ids[owner], number, x.shape[1:], x.dtype)
            moved = x + like(radius, x) * (2 * u - 1)
            return torch.where((sample == 0).view(-1, *[1] * (x.ndim - 1)), x, moved)

        return rows

    def _losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        losses = self.loss_fn(outputs, y)
        if losses.shape != (len(outputs),):
            raise InputError(
                f"loss_fn: gave shape {tuple(losses.shape)} for {len(outputs)} inputs; it must give one loss for each, "
                "e.g. reduction='none' and the mean over any further axes"
            )
        return wide(losses)

    def _own(self, outputs: Tensor, owner: Tensor) -> Tensor:
        """(n,): the only output, or that of the label."""
        if outputs.ndim == 1 or outputs[0].numel() == 1:
            return outputs.flatten()
        if outputs.ndim != 2 or self.labels.is_floating_point():
            raise InputError(
                f"of: 'output' needs class labels and outputs (N, classes), got {tuple(outputs.shape)} and "
                f"{self.labels.dtype} labels; use of='loss'"
            )
        return Outputs("logits", outputs.shape[1]).value(outputs, self.labels[owner].long())

    # -- adding up -----------------------------------------------------------------------------------------------------

    def fold(self, rows: Rows, finish: Finish, per: int, coupled: bool = False) -> Tensor:
        """``finish`` over the batch, (): differentiable in the parameters, one chunk's graph in memory at a time."""
        wanted = self.parameters if torch.is_grad_enabled() else []
        inputs, numbers = (torch.arange(n, device=self.x.device) for n in (len(self), len(self) * per))
        if len(numbers) <= self.max_batch:
            return finish(rows(numbers, bool(wanted)), inputs)
        if not wanted:
            return finish(torch.cat([rows(part, False).detach() for part in chunks(numbers, self.max_batch)]), inputs)
        return known(*self.slopes(rows, finish, per, wanted, coupled), wanted)

    def slopes(
        self, rows: Rows, finish: Finish, per: int, wanted: Sequence[Tensor], coupled: bool = False
    ) -> tuple[Tensor, Gradients]:
        """(value, its gradients with respect to ``wanted``).

        A chunk is some inputs with all their rows. Where one input has more rows than fit, or where ``finish`` couples
        the inputs, the rows' values come first, without a graph; with the slope of ``finish`` there, the value is linear in
        the rows, so that they can be differentiated in any chunks.
        """
        inputs = torch.arange(len(self), device=self.x.device)
        every = torch.arange(len(self) * per, device=self.x.device).unflatten(0, (-1, per))
        with torch.enable_grad():
            if len(self) * per <= self.max_batch or (per <= self.max_batch and not coupled):
                parts = chunks(inputs, self.max_batch // per)
                return summed((finish(rows(every[part].flatten(), True), part) for part in parts), wanted)
            parts = chunks(every.flatten(), self.max_batch)
            values = torch.cat([rows(part, False).detach() for part in parts]).requires_grad_()
            value = finish(values, inputs)
            slope, *direct = torch.autograd.grad(value, [values, *wanted], allow_unused=True)
            linear = ((rows(part, True) * slope[part]).sum() for part in parts)
            return value.detach(), _add(direct, summed(linear, wanted)[1])


def summed(values: Iterable[Tensor], wanted: Sequence[Tensor]) -> tuple[Tensor, Gradients]:
    """(Σ values, its gradients), each value's graph freed before the next is made."""
    total, grads = torch.zeros((), device=wanted[0].device), [None] * len(wanted)  # type: tuple[Tensor, Gradients]
    for value in values:
        total = total + value.detach()
        if value.requires_grad:
            grads = _add(grads, torch.autograd.grad(value, wanted, allow_unused=True))
    return total, grads


def known(value: Tensor, gradients: Gradients, wanted: Sequence[Tensor]) -> Tensor:
    """``value`` as a function of ``wanted`` whose gradients are known already."""
    return _Known.apply(value, gradients, *wanted)


def chunks(numbers: Tensor, size: int) -> tuple[Tensor, ...]:
    """At most ``size`` in each, as even as can be."""
    return numbers.tensor_split(-(-len(numbers) // max(1, size)))


def like(size: float | Tensor, x: Tensor) -> Tensor:
    """A number, or a tensor of any dtype and device, to compute with ``x``."""
    return torch.as_tensor(size, dtype=x.dtype, device=x.device)


def wide(values: Tensor) -> Tensor:
    """float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, gradients: Gradients, *wanted: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor):  # type: ignore[no-untyped-def]
        return None, None, *(None if g is None else slope.to(g.dtype) * g for g in ctx.gradients)


def _add(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Gradients:
    return [q if p is None else p if q is None else p + q for p, q in zip(a, b, strict=True)]


def _checked(outputs: object, count: int) -> Tensor:
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != count:
        shape = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputError(
            f"model: its output is {shape} for {count} inputs; wrap it so that forward returns one row for each"
        )
    return outputs


@contextlib.contextmanager
def _seeded(device: torch.device, key: Key) -> Iterator[None]:
    """The global random state comes back; meanwhile it follows from the key. Other devices' states are not touched."""
    high, low = key.words
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        for generator in (torch.default_generator, *([torch.cuda.default_generators[device.index]] if cuda else [])):
            generator.manual_seed(high << 32 | low)
        yield
