"""A probe of a model with one picture: what each submodule gives, its gradients, and what moves when the picture changes.

:mod:`.cam_layers` chooses among the outputs. The probe takes one row with gradient, and one
without for each tile, if an output is met that is not proved to be a map by its graph alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .hooks import attached
from .places import Layer, Tiles, follow, is_local, proved, readings, to_grid

REFUSALS = (RuntimeError, ValueError, IndexError, ArithmeticError, AssertionError)
"""What a model raises that does not take a picture."""

PICTURES = 3
"""Pictures of noise that are tried one after another until a gradient reaches the picture."""

Ask = Callable[[Tensor], Tensor]
"""One picture (1, C, H, W) → the scores (q,) of the outputs that the layer must serve."""

Keep = Callable[[str, int, Tensor], bool]
"""(name of a submodule, number of its call, its output) → whether the output was kept."""


@dataclass
class Output:
    """One output of one call of a submodule.

    Args:
        name: of the submodule.
        call: number of its call, from 0.
        clean: the output for the picture as it is, with its graph.
        gradients: of each score with respect to it; None where the score does not depend on it.
        moved: for each tile, how far each cell moves, the norm over channels: {"tokens": (T,)}; of 4-D outputs under both
            readings, {"NCHW": (h, w), "NHWC": (h, w)}.
    """

    name: str
    call: int
    clean: Tensor
    gradients: list[Tensor | None] = field(default_factory=list)
    moved: list[dict[str, Tensor]] = field(default_factory=list)

    def __str__(self) -> str:
        return repr(f"{self.name}#{self.call}" if self.call else self.name)


class Probe:
    """The outputs of some submodules for one picture, and what becomes of them when a quarter of it is replaced.

    Args:
        picture: (1, C, H, W), a leaf.
        score: (q,), with its graph.
        outputs: those that depend on the picture, in order of execution.
        module: the model.
        ask: the scores of one picture.
        names: of the submodules whose outputs are recorded.

    Attributes:
        spatial: (H, W).
        tiles: the parts of the picture that are replaced one after another.
        slope: the gradient of the sum of all scores with respect to the picture; None where there is none.
    """

    def __init__(
        self, picture: Tensor, score: Tensor, outputs: list[Output], module: nn.Module, ask: Ask, names: set[str]
    ) -> None:
        self.picture = picture
        self.module = module
        self.ask = ask
        self.names = names
        self._moved = False
        self.score = score
        self.outputs = outputs
        self.spatial = (picture.shape[2], picture.shape[3])
        self.tiles = Tiles.of(self.spatial)
        self.slope: Tensor | None = None

    @staticmethod
    def of(module: nn.Module, ask: Ask, image: Tensor, names: set[str]) -> Probe:
        """Probe a model with noise; with the image itself where the model refuses noise or is flat there.

        Args:
            module: the model.
            ask: the scores of one picture.
            image: (1, C, H, W).
            names: of the submodules whose outputs are recorded.

        Raises:
            InputError: no gradient of the scores reaches the image.
        """
        for attempt in range(PICTURES):
            # Models that check their inputs refuse noise, each in its own way; the image itself is still to be tried.
            with contextlib.suppress(*REFUSALS):
                probe = Probe._on(module, ask, _noise(image, attempt), names)
                if probe.slope is not None and probe.score.isfinite().all():
                    return probe
        probe = Probe._on(module, ask, image, names)
        if probe.slope is None:
            raise InputError(
                "layer: the scores have no graph back to the image; look for .detach(), torch.no_grad() or rounding in forward"
            )
        return probe

    @staticmethod
    def _on(module: nn.Module, ask: Ask, picture: Tensor, names: set[str]) -> Probe:
        """The outputs on one picture and their gradients; not yet how they move."""
        # A leaf of our own, so that the gradient reaches nothing of the caller's.
        leaf = picture.detach().clone().requires_grad_()
        outputs: list[Output] = []

        def keep(name: str, call: int, tensor: Tensor) -> bool:
            outputs.append(Output(name, call, tensor))
            return True

        with torch.enable_grad():
            with watched(module, names, keep):
                score = ask(leaf)
            differentiable = [output for output in outputs if output.clean.requires_grad]
            probe = Probe(leaf, score, differentiable, module, ask, names)
            if score.requires_grad:
                probe._differentiate()
        return probe

    def _differentiate(self) -> None:
        """Fill in the gradient of each score with respect to each output, and of all with respect to the picture."""
        tensors = [output.clean for output in self.outputs]
        # One backward pass for each score gives the gradients of all outputs of the network at once.
        total = torch.zeros_like(self.picture)
        for value in self.score:
            in_picture, *in_outputs = torch.autograd.grad(
                value, [self.picture, *tensors], retain_graph=True, allow_unused=True
            )
            for output, gradient in zip(self.outputs, in_outputs, strict=True):
                output.gradients.append(gradient)
            if in_picture is not None:
                total = total + in_picture
        if bool(total.any()):
            self.slope = total

    def _move(self) -> None:
        """Fill in how far each cell of each output moves when each tile of the picture is replaced."""
        known = {(output.name, output.call): output for output in self.outputs}

        def compare(name: str, call: int, tensor: Tensor) -> bool:
            output = known.get((name, call))
            # Pruned tokens may differ in number from picture to picture; then this output is judged by fewer tiles, and fails.
            if output is not None and tensor.shape == output.clean.shape:
                change = (tensor.detach() - output.clean.detach()).double()[:1]
                # Under each reading, the norm over the axis of channels.
                if change.ndim == 3:
                    output.moved.append({"tokens": change[0].norm(dim=1)})
                elif change.ndim == 4:
                    output.moved.append({"NCHW": change[0].norm(dim=0), "NHWC": change[0].norm(dim=2)})
            return False

        with torch.no_grad():
            picture = self.picture.detach()
            for changed in self.tiles.replaced(picture, _shuffled(picture)):
                with watched(self.module, self.names, compare):
                    self.ask(changed)

    def judge(self, output: Output) -> tuple[Layer | None, str]:
        """How an output lies on the image, if that is proved and each score has a gradient at two places or more.

        Args:
            output: one of :attr:`outputs`.

        Returns:
            (the reading, ""), or (None, why there is none); the reason is "" where the shape is not that of a map.
        """
        shape = output.clean.shape
        options = readings(output.name, output.call, shape, self.spatial)
        if shape[0] != 1:
            where = "its first axis is not the inputs'"
            if options and len(shape) in (3, 4):
                where = "the image's windows are its rows, in window order"
            return None, f"{output} gives {tuple(shape)} for one image: {where}"
        if not options:
            return None, ""
        layer, reason = self._prove(output, options)
        if layer is None:
            return None, reason
        for gradient in output.gradients:
            places = 0
            if gradient is not None:
                places = int((to_grid(gradient, layer) != 0).any(1).sum())
            # At one place only: the class token's gradient, or that of an output that was averaged before.
            if places < 2:
                return None, f"{output} has no gradient of the score over space"
        return layer, ""

    def _prove(self, output: Output, options: list[Layer]) -> tuple[Layer | None, str]:
        """The first of the readings whose cells are proved to be places of the image, or why none is."""
        best_right = -1
        best_judged = 1
        for layer in options:
            # The graph alone proves most layers of convolutional networks, and costs no pass of the model.
            if is_local(output.clean, layer):
                return layer, ""
            right, judged = self._follow(output, layer)
            if proved(right, judged, self.tiles):
                return layer, ""
            # Which reading comes nearest, by its share of cells: right / judged without dividing by zero.
            if right * best_judged > best_right * judged:
                best_right = right
                best_judged = max(judged, 1)
        return None, (
            f"{output} gives {tuple(output.clean.shape)}, whose cells are no places of the image: {max(best_right, 0)} of "
            f"{best_judged} follow it when a quarter of it changes (learned queries, windows, or tokens that are pruned "
            "or sorted)"
        )

    def _follow(self, output: Output, layer: Layer) -> tuple[int, int]:
        """(cells that follow their own tile, cells that could), read as ``layer``."""
        if not self._moved:
            self._moved = True
            # A model that refuses such a picture has no output that is proved by it.
            with contextlib.suppress(*REFUSALS):
                self._move()
        if len(output.moved) != len(self.tiles):
            return 0, 0  # it gave another shape, or did not run, for some of the changed pictures
        cells = torch.stack([moved[layer.layout] for moved in output.moved])
        if layer.layout == "tokens":
            cells = cells[:, layer.prefix :].unflatten(1, layer.grid)
        return follow(cells, self.tiles)

    def carried(self, output: Output, layer: Layer) -> float:
        """The share of the score's gradient that passes through a layer's cells: ‖through‖ / ‖all‖, in the picture.

        Args:
            output: one of :attr:`outputs`.
            layer: how it lies on the image.
        """
        total = torch.zeros_like(output.clean)
        for gradient in output.gradients:
            if gradient is not None:
                total = total + gradient
        # What a class token carries does not pass through the cells.
        if layer.prefix:
            total = total.clone()
            total[:, : layer.prefix] = 0
        # The chain rule stopped at this output: what reaches the picture by other ways is left out.
        # As the gradient of a number: given the gradient of a tensor, PyTorch imports sympy first, which takes a second.
        reaching = (output.clean * total.detach()).sum()
        (through,) = torch.autograd.grad(reaching, self.picture, retain_graph=True, allow_unused=True)
        if through is None or self.slope is None:
            return 0.0
        return float(through.double().norm() / self.slope.double().norm())


def _noise(image: Tensor, number: int) -> Tensor:
    """A picture of standard normal noise, the same on every device."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(image.shape, generator=generator, dtype=torch.float64).to(image)


def _shuffled(picture: Tensor) -> Tensor:
    """The same pixels in another order: values that the model accepts."""
    pixels = picture.flatten(2)
    order = torch.randperm(pixels.shape[2], generator=torch.Generator().manual_seed(0))
    return pixels[:, :, order.to(picture.device)].view_as(picture)


@contextlib.contextmanager
def watched(module: nn.Module, names: set[str], keep: Keep) -> Iterator[None]:
    """Show each output of some submodules while the model runs inside.

    Args:
        module: the model.
        names: of the submodules. Scripted ones, which take no hooks, are left out.
        keep: gets each output that is a tensor, of several the first. Where it says that it kept it, the model goes on with a
            clone, so that later in-place operations do not change what was kept.
    """

    def hook_of(name: str) -> Callable:
        calls = 0

        def after(_: nn.Module, args: Any, output: Any) -> Any:
            nonlocal calls
            # Not named tuples: they are not made from one iterable.
            is_sequence = type(output) in (tuple, list) and len(output) > 0
            tensor = output[0] if is_sequence else output
            if not isinstance(tensor, Tensor):
                return None
            calls += 1
            if not keep(name, calls - 1, tensor):
                return None
            if is_sequence:
                return type(output)((tensor.clone(), *output[1:]))
            return tensor.clone()

        return after

    hooks = [
        (child, hook_of(name))
        for name, child in module.named_modules()
        if name in names and not isinstance(child, torch.jit.ScriptModule)
    ]
    with attached(after=hooks):
        yield
