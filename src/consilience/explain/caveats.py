"""What the caller should know besides the numbers: warnings about the model, the masks and the methods."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..combine.aggregations import Given
from ..combine.draws import FIT, FRESH, one_number
from ..combine.measurement import Measurement
from ..errors import ConsilienceError
from ..explainers.perturbation import FeatureAblation, Occlusion
from ..metrics.infidelity import too_weak
from ..model.score import Score
from ..perturb.neighbourhoods import unmoved
from ..perturb.points import Points
from ..statistics.evidence import Evidence
from ..statistics.keys import Key
from ..statistics.tensors import exact
from .kept import Kept
from .run import Job

FEW_MASKS = 32
"""With fewer the standard error of a correlation near zero, 1/√masks, is above .18: as large as most correlations are."""


def caveats(job: Job, kept: Kept, masks: Sequence[Evidence]) -> list[str]:
    """Every warning of one call, in words that say what to do.

    Args:
        job: the call.
        kept: what it evaluated.
        masks: of each input, draws of which the masks are looked at, where there are any.
    """
    found = job.ready.score.warnings()
    if not job.options.quick:
        found += _black_box_warnings(job.ready.score, job.ready.points, job.ready.measurement)
    return [
        *found,
        *_draw_warnings(job, masks),
        *_mask_warnings(kept, masks),
        *_rounding_warnings(job, kept),
        *_method_warnings(job, kept.combined.base),
    ]


def _draw_warnings(job: Job, drawn: Sequence[Evidence]) -> list[str]:
    """Where one small number was given for neighbours, which are few, and so for masks too, which must be many."""
    options = job.options
    asked = {}
    if not options.quick:
        asked["fresh_draws"] = (options.fresh_draws, FRESH)
    if "responses" in options.aggregation.kinds:
        asked["fit_draws"] = (options.fit_draws, FIT)
    # Of small inputs there are no more masks than these.
    masks = [evidence.responses for evidence in drawn]
    counts = [part.count for part in masks if part is not None and bool(part.exact.all())]
    most = max(counts) if len(counts) == len(masks) else FEW_MASKS
    found = []
    for name, (spec, usual) in asked.items():
        number = one_number(spec)
        if number is not None and number < min(FEW_MASKS, most):
            found.append(
                f"{name}={number} is {number} neighbours and {number} masks, by which a correlation is known within "
                f"± {number**-0.5:.2f} only; give {name}={{'average_sensitivity': {number}}}, which makes "
                f"{usual.infidelity} masks"
            )
    return found


def _black_box_warnings(score: Score, points: Points, measurement: Measurement) -> list[str]:
    """Of a black box whether it is piecewise constant, like a forest, which costs ten evaluations for each input."""
    found: list[str] = []
    if isinstance(score.model, nn.Module):
        return found
    where = measurement.sensitivity.neighbourhood
    try:
        same, fixed = unmoved(score, points, where, Key(measurement.seed, "flat"))
    except (ConsilienceError, MemoryError, RuntimeError):
        raise
    except Exception as error:  # whatever the caller's function raises at points that it was not made for
        found.append(
            f"the model raises {type(error).__name__} near the inputs ({error}), so methods and sensitivities that ask it "
            "there are missing; if it takes codes of categories, say which columns hold them, by "
            "features=cs.Columns(categorical=[…])"
        )
        return found
    if bool(same.any()):
        found.append(
            f"the score of {int(same.sum())} of {len(same)} inputs is the same at all neighbours: the model is piecewise "
            "constant there, so a sensitivity near zero is no merit, and gradients would be zero"
        )
    if bool(fixed.any()):
        found.append(
            f"the noise moves nothing in {int(fixed.sum())} of {len(fixed)} inputs (blocks, and columns of 0 and 1, stay as "
            "they are), so a sensitivity of zero is no merit there; judge by faithfulness"
        )
    return found


def _mask_warnings(kept: Kept, masks: Sequence[Evidence]) -> list[str]:
    """Inputs whose masks hardly move the score, although all features together do."""
    each = [evidence.responses for evidence in masks]
    drawn = [part for part in each if part is not None]
    if len(drawn) < len(each):
        return []
    return [
        f"input {at}: masks move the score by at most {most:.1e}, all features together by "
        f"{abs(float(kept.everything[at])):.1e}: these masks are no evidence of what the score rests on; take larger features, "
        "or another baseline"
        for at, most in too_weak(drawn, kept.everything)
    ]


def _rounding_warnings(job: Job, kept: Kept) -> list[str]:
    """Of a model whose outputs are in half precision: that single features move the score by no more than its rounding."""
    score = job.ready.score
    points = job.ready.points
    measurement = job.ready.measurement
    kind = score.precision or score.outputs.dtype
    stack = measurement.stack.stack
    alone = []
    for name, explainer in zip(stack.names, stack.explainers, strict=True):
        if isinstance(explainer, FeatureAblation | Occlusion):
            alone.append(name)
    if kind not in (torch.float16, torch.bfloat16) or not alone:
        return []
    shape = points.x.shape[1:]
    features = measurement.infidelity.neighbourhood(shape).features
    each = kept.everything.abs() / math.prod(features.shape(shape))
    step = torch.finfo(kind).eps * exact(score.clean)[points.owner].abs()
    rough = int((each < step).sum())
    if not rough:
        return []
    moved = float(each.median())
    rounding = float(step.median())
    return [
        f"{', '.join(alone)}: single features move the score by about {moved:.1e}, and {str(kind)[6:]} outputs are in steps of "
        f"{rounding:.1e} ({rough} of {len(each)} inputs): these maps are largely rounding; explain the model in float32, "
        "model.float()"
    ]


def _method_warnings(job: Job, base: Tensor) -> list[str]:
    """Methods that ran and gave what is no map."""
    working = job.ready.measurement.working
    finite = base[:, list(working)].flatten(2).isfinite().all(2)
    bad = (~finite).sum(0).tolist()
    left_out = "" if isinstance(job.aggregation, Given) else ", and takes no part there"
    found = []
    for at, count in zip(working, bad, strict=True):
        if count:
            found.append(
                f"{job.ready.names[at]} gives NaN or infinite values for {count} of {len(base)} inputs{left_out}"
            )
    silent = (base[:, list(working)].flatten(2) == 0).all(2).sum(0).tolist()
    for at, count in zip(working, silent, strict=True):
        if count:
            found.append(
                f"{job.ready.names[at]}: the map is zero everywhere for {count} of {len(base)} inputs{left_out}"
            )
    for name, why in job.ready.measurement.stack.stack.failures.items():
        found.append(f"{name} failed at some inputs or neighbours of theirs, and is NaN there: {why}")
    return found
