"""Which layer a class activation map reads.

The choice is a function of the model, not of the batch: it is made on one fixed picture of noise. Every submodule's output is
recorded there, with the gradient of the first and of the last output of the model. The layer is the last one recorded

- whose cells are proved to be places of the image (:mod:`.places`),
- at which both outputs have a gradient at two places or more, and
- through which a hundredth or more of the score's gradient in the image passes, so that an auxiliary branch or an adapter
  that merely runs late is passed over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, choose
from .hooks import attached
from .places import Layer, Tiles, follow, is_local, proved, readings, to_grid

__all__ = ["PROBE_FORWARDS", "Layer", "captured", "find", "named", "to_grid"]

# Share of the score's gradient in the image that must pass through the layer. The last block's norm of an untrained class-token
# transformer has about a twentieth, since that token has met the patches in every block before.
CARRIED = 0.01
PROBE_FORWARDS = 4  # rows without gradient, beside one with: an image with each quarter replaced
PICTURES = 3  # of noise, tried one after another until a gradient reaches the picture

# One picture (1, C, H, W) → the scores (q,) of the outputs that the layer must serve.
Ask = Callable[[Tensor], Tensor]


def find(module: nn.Module, ask: Ask, image: Tensor) -> Layer:
    """The last layer whose cells are places and through which the score passes.

    A class-token transformer's last block has a gradient at that token only, so the last block's first norm is found. Token
    outputs of another width than the residual stream (queries, keys, hidden layers) are passed over, and projections of
    tokens are taken only if there is nothing else.

    Args:
        module: the model; every submodule's output is looked at.
        ask: the scores of one picture.
        image: (1, C, H, W), whose shape, type and device the probe's pictures have; used itself only where noise is refused
            or gives no gradient.

    Returns:
        the layer.

    Raises:
        InputError: the scores have no graph, or no output qualifies; says what was tried.
    """
    probe = _Probe.of(module, ask, image, {name for name, _ in module.named_modules() if name})
    projections = {name for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    widths = _stream_widths(probe.outputs, projections)
    spare = None
    reasons: list[str] = []
    for output in reversed(probe.outputs):
        tokens = output.clean.ndim == 3
        if tokens and output.clean.shape[2] != widths.get(output.clean.shape[1]):
            continue
        layer, reason = probe.judge(output)
        if layer is None:
            if reason:
                reasons.append(reason)
        elif probe.carried(output, layer) < CARRIED:
            reasons.append(f"{layer} (hardly any of the score passes through it)")
        elif tokens and output.name in projections:
            spare = spare or layer
        else:
            return layer
    if spare is not None:
        return spare
    names = list(dict.fromkeys(output.name for output in reversed(probe.outputs)))
    seen = "; ".join(dict.fromkeys(reasons[:4])) or "none is spatial"
    raise InputError(
        f"layer: none of {len(probe.outputs)} outputs is a map of an image of {probe.spatial[0]} × {probe.spatial[1]}: {seen}; "
        f'name one with layer="…", e.g. {", ".join(names[:6]) or "none recorded (a scripted model?)"}, or leave class '
        "activation maps out"
    )


def named(module: nn.Module, name: str, ask: Ask, image: Tensor) -> Layer:
    """The layer the user chose: the last output of ``name`` whose cells are places, or that of call k for ``name#k``.

    Args:
        module: as for :func:`find`.
        ask: as for :func:`find`.
        image: as for :func:`find`.
        name: a submodule's qualified name, with "#k" for its k-th call, from 0.

    Raises:
        InputError: unknown name (near matches are given), never run, not spatial (its shapes are given), in another order
            than the image's (windows, queries, pruned tokens), or no part of the score.
    """
    path, _, which = name.partition("#")
    choose("layer", path, [known for known, _ in module.named_modules() if known])
    if which and not which.isdecimal():
        raise InputError(f"layer: expected 'name' or 'name#call', got {name!r}")
    probe = _Probe.of(module, ask, image, {path})
    outputs = [output for output in probe.outputs if which in ("", str(output.call))]
    reasons: list[str] = []
    for output in reversed(outputs):
        layer, reason = probe.judge(output)
        if layer is not None:
            return layer
        reasons.append(reason or f"{output} gives {tuple(output.clean.shape)}, which lies on no grid of the image")
    if not reasons:
        reasons = [f"{name!r} gives no tensor that depends on the image"]
    height, width = probe.spatial
    raise InputError(
        f"layer: {reasons[0]} (image of {height} × {width}); name a layer that keeps the image's places and leads to the "
        "score, use layer='auto', or leave class activation maps out"
    )


@contextlib.contextmanager
def captured(module: nn.Module, layers: Sequence[Layer]) -> Iterator[dict[Layer, Tensor]]:
    """Run a forward pass inside; afterwards the dict has each layer's activation, in its own layout and with its graph.

    The model goes on with a clone, so that later in-place operations do not change what was captured; values and
    gradients are the same. Hooks are removed, whatever happens.

    Args:
        module: the model that runs.
        layers: of which the activations are kept.

    Raises:
        InputError: on leaving, for a layer that did not run.
    """
    activations: dict[Layer, Tensor] = {}
    wanted = {(layer.name, layer.call): layer for layer in layers}

    def keep(name: str, call: int, tensor: Tensor) -> bool:
        layer = wanted.get((name, call))
        if layer is None:
            return False
        activations[layer] = tensor
        return True

    with _hooked(module, {layer.name for layer in layers}, keep):
        yield activations
    missing = [str(layer) for layer in layers if layer not in activations]
    if missing:
        raise InputError(f"layer: {', '.join(missing)} did not run in this forward pass; choose one that always runs")


# -- the probe ---------------------------------------------------------------------------------------------------------


@dataclass
class _Output:
    """One output of one submodule's call.

    Args:
        name: of the submodule.
        call: number of its call, from 0.
        clean: the output for the picture as it is, with its graph.
        gradients: of each score in it.
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


class _Probe:
    """The outputs of some submodules for one picture, and what becomes of them when a quarter of it is replaced.

    Args:
        picture: (1, C, H, W), a leaf.
        score: (q,), with its graph.
        outputs: those that depend on the picture, in order of execution.
    """

    def __init__(self, picture: Tensor, score: Tensor, outputs: list[_Output]) -> None:
        self.picture = picture
        self.score = score
        self.outputs = outputs
        self.spatial = (picture.shape[2], picture.shape[3])
        self.tiles = Tiles.of(self.spatial)
        self.slope: Tensor | None = None  # of all scores together, in the picture

    @staticmethod
    def of(module: nn.Module, ask: Ask, image: Tensor, names: set[str]) -> _Probe:
        """Probe with noise; with ``image`` itself where the model refuses noise or is flat there."""
        for attempt in range(PICTURES):
            with contextlib.suppress(RuntimeError, ValueError, IndexError, ArithmeticError, AssertionError):
                probe = _Probe._on(module, ask, _noise(image, attempt), names)
                if probe.slope is not None and probe.score.isfinite().all():
                    probe._move(module, ask, names)
                    return probe
        probe = _Probe._on(module, ask, image, names)
        if probe.slope is None:
            raise InputError(
                "layer: the scores have no graph back to the image; look for .detach(), torch.no_grad() or rounding in forward"
            )
        probe._move(module, ask, names)
        return probe

    @staticmethod
    def _on(module: nn.Module, ask: Ask, picture: Tensor, names: set[str]) -> _Probe:
        """The outputs on one picture and their gradients; not yet how they move."""
        leaf = picture.detach().clone().requires_grad_()
        outputs: list[_Output] = []

        def keep(name: str, call: int, tensor: Tensor) -> bool:
            outputs.append(_Output(name, call, tensor))
            return True

        with torch.enable_grad():
            with _hooked(module, names, keep):
                score = ask(leaf)
            probe = _Probe(leaf, score, [output for output in outputs if output.clean.requires_grad])
            if score.requires_grad:
                probe._differentiate()
        return probe

    def _differentiate(self) -> None:
        """The gradient of each score in each output, and of all in the picture."""
        tensors = [output.clean for output in self.outputs]
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

    def _move(self, module: nn.Module, ask: Ask, names: set[str]) -> None:
        """Fill in how far each cell of each output moves when each tile of the picture is replaced."""
        known = {(output.name, output.call): output for output in self.outputs}

        def compare(name: str, call: int, tensor: Tensor) -> bool:
            output = known.get((name, call))
            if output is not None and tensor.shape == output.clean.shape:
                change = (tensor.detach() - output.clean.detach()).double()[:1]
                if change.ndim == 3:
                    output.moved.append({"tokens": change[0].norm(dim=1)})
                elif change.ndim == 4:
                    output.moved.append({"NCHW": change[0].norm(dim=0), "NHWC": change[0].norm(dim=2)})
            return False

        with torch.no_grad():
            picture = self.picture.detach()
            for changed in self.tiles.replaced(picture, _shuffled(picture)):
                with _hooked(module, names, compare):
                    ask(changed)

    def judge(self, output: _Output) -> tuple[Layer | None, str]:
        """The reading that is proved, and through which each score has a gradient at two places; or why there is none
        ("" for what is no map by its shape)."""
        shape = output.clean.shape
        options = readings(output.name, output.call, shape, self.spatial)
        if shape[0] != 1:
            where = "its first axis is not the inputs'"
            if options and len(shape) in (3, 4):
                where = "the image's windows are its rows, in window order"
            return None, f"{output} gives {tuple(shape)} for one image: {where}"
        if not options:
            return None, ""
        best_right = -1
        best_judged = 1
        for layer in options:
            right, judged = self._follow(output, layer)
            if is_local(output.clean, layer) or proved(right, judged, self.tiles):
                break
            # Which reading comes nearest, by its share of cells: right / judged without dividing by zero.
            if right * best_judged > best_right * judged:
                best_right = right
                best_judged = max(judged, 1)
        else:
            return None, (
                f"{output} gives {tuple(shape)}, whose cells are no places of the image: {max(best_right, 0)} of "
                f"{best_judged} follow it when a quarter of it changes (learned queries, windows, or tokens that are pruned "
                "or sorted)"
            )
        for gradient in output.gradients:
            if gradient is None or int((to_grid(gradient, layer) != 0).any(1).sum()) < 2:
                return None, f"{output} has no gradient of the score over space"
        return layer, ""

    def _follow(self, output: _Output, layer: Layer) -> tuple[int, int]:
        """(cells that follow their own tile, cells that could), read as ``layer``."""
        if len(output.moved) != len(self.tiles):
            return 0, 0  # it gave another shape, or did not run, for some of the changed pictures
        cells = torch.stack([moved[layer.layout] for moved in output.moved])
        if layer.layout == "tokens":
            cells = cells[:, layer.prefix :].unflatten(1, layer.grid)
        return follow(cells, self.tiles)

    def carried(self, output: _Output, layer: Layer) -> float:
        """How much of the score's gradient in the picture passes through the layer's cells: ‖through‖ / ‖all‖."""
        total = torch.zeros_like(output.clean)
        for gradient in output.gradients:
            if gradient is not None:
                total = total + gradient
        if layer.prefix:  # what a class token carries does not pass through the cells
            total = torch.cat([torch.zeros_like(total[:, : layer.prefix]), total[:, layer.prefix :]], 1)
        (through,) = torch.autograd.grad(output.clean, self.picture, total, retain_graph=True, allow_unused=True)
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


def _stream_widths(outputs: Sequence[_Output], projections: set[str]) -> dict[int, int]:
    """Number of tokens → the width of the last output with so many, of one that is no projection if there is any."""
    tokens = [output for output in outputs if output.clean.ndim == 3 and output.clean.shape[2] > 1]
    widths = {output.clean.shape[1]: output.clean.shape[2] for output in tokens}
    streams = [output for output in tokens if output.name not in projections]
    widths.update({output.clean.shape[1]: output.clean.shape[2] for output in streams})
    return widths


@contextlib.contextmanager
def _hooked(module: nn.Module, names: set[str], keep: Callable[[str, int, Tensor], bool]) -> Iterator[None]:
    """Show ``keep`` each named submodule's output; where it says that it kept it, the model goes on with a clone."""

    def hook(name: str) -> Callable:
        calls = 0

        def after(_: nn.Module, args: Any, output: Any) -> Any:
            nonlocal calls
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
        (child, hook(name))
        for name, child in module.named_modules()
        if name in names and not isinstance(child, torch.jit.ScriptModule)
    ]
    with attached(after=hooks):
        yield
