"""Which layer a class activation map reads.

The choice is a function of the model, not of the batch: it is made on one fixed picture of noise (:mod:`.cam_probe`). Every
submodule's output is recorded there, with the gradient of the first and of the last output of the model. The layer is the
last one recorded

- whose cells are proved to be places of the image (:mod:`.places`),
- at which both outputs have a gradient at two places or more, and
- through which a hundredth or more of the score's gradient in the image passes, so that an auxiliary branch or an adapter
  that merely runs late is passed over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from ..errors import InputError, choose
from .cam_probe import Ask, Output, Probe, watched
from .places import Layer, to_grid

__all__ = ["Layer", "captured", "find", "named", "to_grid"]

# Share of the score's gradient in the image that must pass through the layer. The last block's norm of an untrained class-token
# transformer has about a twentieth, since that token has met the patches in every block before.
CARRIED = 0.01


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
    names = {name for name, _ in module.named_modules() if name}
    probe = Probe.of(module, ask, image, names)
    projections = {name for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    widths = _stream_widths(probe.outputs, projections)
    projected = None
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
            # The last one of them, if there is nothing better before it.
            projected = projected or layer
        else:
            return layer
    if projected is not None:
        return projected
    raise InputError(_none_fits(probe, reasons))


def _none_fits(probe: Probe, reasons: Sequence[str]) -> str:
    """What to say where no output can serve: why the last few cannot, and which names there are."""
    height, width = probe.spatial
    tried = "; ".join(dict.fromkeys(reasons[:4])) or "none is spatial"
    names = list(dict.fromkeys(output.name for output in reversed(probe.outputs)))
    examples = ", ".join(names[:6]) or "none recorded (a scripted model?)"
    return (
        f"layer: none of {len(probe.outputs)} outputs is a map of an image of {height} × {width}: {tried}; "
        f'name one with layer="…", e.g. {examples}, or leave class activation maps out'
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
    path, _, which_call = name.partition("#")
    choose("layer", path, [known for known, _ in module.named_modules() if known])
    if which_call and not which_call.isdecimal():
        raise InputError(f"layer: expected 'name' or 'name#call', got {name!r}")
    probe = Probe.of(module, ask, image, {path})
    outputs = [output for output in probe.outputs if which_call in ("", str(output.call))]
    reasons: list[str] = []
    # From the last call back, if none was named: where a module runs several times, the last is nearest the score.
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

    with watched(module, {layer.name for layer in layers}, keep):
        yield activations
    # Not reached after an error inside, which is raised instead.
    missing = [str(layer) for layer in layers if layer not in activations]
    if missing:
        raise InputError(f"layer: {', '.join(missing)} did not run in this forward pass; choose one that always runs")


def _stream_widths(outputs: Sequence[Output], projections: set[str]) -> dict[int, int]:
    """The width of the residual stream: number of tokens → width of the last output with so many.

    Of an output other than a projection's, if there is one.
    """
    tokens = [output for output in outputs if output.clean.ndim == 3 and output.clean.shape[2] > 1]
    streams = [output for output in tokens if output.name not in projections]
    widths = {}
    # Later ones replace earlier ones: the last output counts, and streams come after all tokens.
    for output in (*tokens, *streams):
        _, count, width = output.clean.shape
        widths[count] = width
    return widths
