"""How an objective evaluates the model besides the task loss: without a trace, and within ``max_batch`` rows.

The *task pass* is the training step's own forward pass: the model as given, in the caller's mode. Every other evaluation
must leave no trace on the training. It sees the module inside DistributedDataParallel, works on copies of the buffers
(running statistics move in the task pass only), draws dropout from a random stream of its own, and asks for attention that
can be differentiated twice.

An objective needs some rows for each input, N = B · rows_each in all, which are numbered input by input. A quantity is given
by two functions, :data:`Rows` and :data:`Finish`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..attacks.box import like
from ..errors import InputError
from ..model.calling import layout_of
from ..model.outputs import Outputs
from ..model.random_state import forked
from ..statistics.keys import Key
from .accumulation import Gradients, added, chunks, sum_with_gradients, with_gradients

Rows = Callable[[Tensor, bool], Tensor]
"""(numbers (n,) of rows, whether to keep the graph) → their values (n, …)."""

Finish = Callable[[Tensor, Tensor], Tensor]
"""(values of all rows of some inputs, the numbers of these inputs) → (), the sum over these inputs."""


@dataclass(frozen=True)
class Passes:
    """One call of an objective, and the evaluations that it may make.

    Args:
        model: as given.
        bare: the module inside DistributedDataParallel, or ``model`` itself.
        x: (B, *F), detached.
        y: (B, …) labels, or None.
        ids: (B,) int64, to which the draws of an input belong.
        step: the number of the training step.
        key: of all draws.
        loss_fn: (outputs, y) → one loss per input.
        max_batch: rows in flight.
    """

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
        """``y``, or an InputError where there are no labels."""
        if self.y is None:
            raise InputError("y: this objective needs the labels, got None")
        return self.y

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that are trained."""
        return [parameter for parameter in self.bare.parameters() if parameter.requires_grad]

    # -- evaluating ----------------------------------------------------------------------------------------------------

    def task(self, x: Tensor) -> Tensor:
        """The losses (B,) of the task pass at ``x`` (B, *F)."""
        return self._losses(_checked(self.model(x), len(x)), self.labels)

    def outputs(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """The model's outputs (n, …), without a trace on the training.

        Args:
            rows: (n, *F).
            numbers: (n,), which tell chunks apart: the dropout of two chunks is not the same.
        """
        training = any(module.training for module in self.bare.modules())
        stream = "passes"
        if training:
            # Dropout is another one in each step and chunk; in eval mode nothing has to differ, and no number is waited for.
            stream = f"passes/{self.step}/{int(numbers[0])}"
        # Attention in its plain form: the fused kernels cannot be differentiated twice.
        with forked(_seed_of(self.key / stream)), sdpa_kernel(SDPBackend.MATH):
            # A copy: models that start with an in-place operation must not write to a leaf.
            rows = rows.clone(memory_format=layout_of(self.bare, rows))
            copies = _copies_of_buffers(self.bare)
            if not copies:
                return _checked(self.bare(rows), len(rows))
            return _checked(functional_call(self.bare, copies, (rows,)), len(rows))

    def losses(self, rows: Tensor, owner: Tensor, numbers: Tensor) -> Tensor:
        """The losses (n,) of rows.

        Args:
            rows: (n, *F).
            owner: (n,), the input whose label a row has.
            numbers: (n,), as for :meth:`outputs`.
        """
        return self._losses(self.outputs(rows, numbers), self.labels[owner])

    def gradient(self, rows: Tensor, owner: Tensor, numbers: Tensor, graph: bool, of: str = "loss") -> Tensor:
        """(n, *F): the gradient of each row's loss or output with respect to that row.

        Args:
            rows: (n, *F).
            owner: (n,), the input to which a row belongs.
            numbers: (n,), as for :meth:`outputs`.
            graph: whether the gradient is to be differentiated again.
            of: "loss", or "output": that of the input's label, or the only one.
        """
        with torch.enable_grad():
            if not rows.requires_grad:
                rows = rows.detach().requires_grad_()
            if of == "loss":
                value = self.losses(rows, owner, numbers)
            else:
                value = self._own_output(self.outputs(rows, numbers), owner)
            (gradient,) = torch.autograd.grad(value.sum(), rows, create_graph=graph)
        return wide(gradient)

    def path(self, start: Tensor, end: Tensor, points: int, of: str = "loss") -> Rows:
        """Gradients on straight lines, at start + (k/m)(end − start) for k = 1 … m.

        Args:
            start: (B · r, *F), where each of the r paths of an input begins.
            end: (B · r, *F), where it ends.
            points: m, rows per path.
            of: as for :meth:`gradient`.
        """
        paths_each = len(end) // len(self)

        def rows(numbers: Tensor, graph: bool) -> Tensor:
            path = numbers // points
            step = numbers % points + 1
            share = per_row(step.to(end.dtype), end.ndim) / points
            there = start[path] + share * (end - start)[path]
            return self.gradient(there, path // paths_each, numbers, graph, of)

        return rows

    def around(self, radius: float | Tensor, samples: int, stream: str) -> Callable[[Tensor], Tensor]:
        """Rows (n, *F) by their numbers: of every 1 + samples, the input itself and its neighbours x + U(−radius, radius).

        Args:
            radius: in units of the input; a number, or a tensor that broadcasts over (B, *F).
            samples: neighbours of each input.
            stream: the name of the random stream.
        """

        def rows(numbers: Tensor) -> Tensor:
            owner = numbers // (1 + samples)
            sample = numbers % (1 + samples)
            x = self.x[owner]
            draw = self.step * samples + (sample - 1).clamp(min=0)
            uniform = (self.key / stream).uniform(self.ids[owner], draw, x.shape[1:], x.dtype)
            moved = x + like(radius, x) * (2 * uniform - 1)
            return torch.where(per_row(sample == 0, x.ndim), x, moved)

        return rows

    def _losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The caller's ``loss_fn``: one loss for each row."""
        losses = self.loss_fn(outputs, y)
        if losses.shape != (len(outputs),):
            raise InputError(
                f"loss_fn: gave shape {tuple(losses.shape)} for {len(outputs)} inputs; it must give one loss for each, "
                "e.g. reduction='none' and the mean over any further axes"
            )
        return wide(losses)

    def _own_output(self, outputs: Tensor, owner: Tensor) -> Tensor:
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

    def fold(self, rows: Rows, finish: Finish, rows_each: int, coupled: bool = False) -> Tensor:
        """``finish`` over the batch, (): differentiable in the parameters, one chunk's graph in memory at a time.

        Args:
            rows: what is evaluated.
            finish: what is made of all rows of some inputs.
            rows_each: rows per input.
            coupled: whether ``finish`` has to see the whole batch, since it is not a sum over inputs.
        """
        parameters = self.parameters if torch.is_grad_enabled() else []
        inputs = torch.arange(len(self), device=self.x.device)
        numbers = torch.arange(len(self) * rows_each, device=self.x.device)
        if len(numbers) <= self.max_batch:
            return finish(rows(numbers, bool(parameters)), inputs)
        if not parameters:
            return finish(self._values(rows, numbers), inputs)
        value, gradients = self.slopes(rows, finish, rows_each, parameters, coupled)
        return with_gradients(value, gradients, parameters)

    def slopes(
        self, rows: Rows, finish: Finish, rows_each: int, wanted: Sequence[Tensor], coupled: bool = False
    ) -> tuple[Tensor, Gradients]:
        """(the value of :meth:`fold`, its gradients with respect to ``wanted``).

        Args:
            rows: as for :meth:`fold`.
            finish: as for :meth:`fold`.
            rows_each: as for :meth:`fold`.
            wanted: what is differentiated by.
            coupled: as for :meth:`fold`.
        """
        inputs = torch.arange(len(self), device=self.x.device)
        numbers = torch.arange(len(self) * rows_each, device=self.x.device)
        batch_fits = len(numbers) <= self.max_batch
        inputs_fit = rows_each <= self.max_batch and not coupled
        with torch.enable_grad():
            if batch_fits or inputs_fit:
                # A chunk is some inputs with all their rows.
                of_input = numbers.unflatten(0, (-1, rows_each))
                groups = chunks(inputs, self.max_batch // rows_each)
                values = (finish(rows(of_input[group].flatten(), True), group) for group in groups)
                return sum_with_gradients(values, wanted)
            # One input has more rows than fit, or finish needs all inputs. So the rows' values come first, without a graph.
            # By the chain rule the gradient is that of Σ rows · (slope of finish at their values), which can be differentiated
            # in any chunks; and finish may depend on ``wanted`` directly too.
            all_rows = self._values(rows, numbers).requires_grad_()
            value = finish(all_rows, inputs)
            slope, *direct = torch.autograd.grad(value, [all_rows, *wanted], allow_unused=True)
            linear = ((rows(part, True) * slope[part]).sum() for part in chunks(numbers, self.max_batch))
            _, through_rows = sum_with_gradients(linear, wanted)
            return value.detach(), added(direct, through_rows)

    def _values(self, rows: Rows, numbers: Tensor) -> Tensor:
        """The values of all rows, without a graph."""
        return torch.cat([rows(part, False).detach() for part in chunks(numbers, self.max_batch)])


def per_row(values: Tensor, axes: int) -> Tensor:
    """``values`` (n,) → (n, 1, …, 1) with so many ``axes`` in all, to broadcast over rows."""
    return values.view(-1, *[1] * (axes - 1))


def wide(values: Tensor) -> Tensor:
    """``values`` in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _checked(outputs: object, count: int) -> Tensor:
    """The model's output as a tensor with one row for each of ``count`` inputs."""
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor):
        problem = type(outputs).__name__
    elif outputs.ndim == 0 or len(outputs) != count:
        problem = f"shape {tuple(outputs.shape)}"
    else:
        return outputs
    raise InputError(
        f"model: its output is {problem} for {count} inputs; wrap it so that forward returns one row for each"
    )


def _copies_of_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers that a forward pass may move, by name: running statistics, counters, observers.

    Of a model in eval mode those are left out that are only read, since the copies take time: of batch normalisation, if no
    hook of its own changes them. And those of scripted modules, for which PyTorch has no call with other buffers. Of a model
    that trains all are copied: DistributedDataParallel writes to every buffer in each task pass, a frozen layer's too, and a
    graph that holds one could not be differentiated any more.
    """
    if any(module.training for module in model.modules()):
        return {name: buffer.clone() for name, buffer in model.named_buffers()}
    copies = {}
    for prefix, module in model.named_modules():
        hooked = bool(module._forward_pre_hooks or module._forward_hooks)
        only_read = isinstance(module, nn.modules.batchnorm._BatchNorm) and not hooked
        scripted = isinstance(module, torch.jit.ScriptModule)
        if only_read or scripted:
            continue
        for name, buffer in module.named_buffers(prefix, recurse=False):
            copies[name] = buffer.clone()
    return copies


def _seed_of(key: Key) -> int:
    """64 bits that name the key's stream, for :func:`~consilience.model.random_state.forked`."""
    high, low = key.words
    # PyTorch's generators get all of a seed but its last bit.
    return (high << 32 | low) << 1
