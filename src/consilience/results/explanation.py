"""The result of :func:`consilience.explain`: its tensors, and from them the table, records, pictures, pages and files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..combine.aggregations import DERIVED
from ..combine.draws import FIRST
from ..errors import InputError, printable
from ..model.batching import Counts
from ..report.entry import Entry
from ..report.text import text_table
from ..simplex import Front, Solution
from ..statistics.bounds import largest_change, weights_bound
from ..statistics.evidence import Evidence, Quadratic
from .difference import PairedDifference
from .entries import Entries, picture_of
from .files import output, row_named, write_text
from .record import as_json, name_of, record_of
from .runs import RunFolder

GoOn = Callable[[Mapping[str, Any], Callable[[float, float], None] | None], "Explanation"]
"""(options, progress) → the same answer, judged as the options ask."""

REFINED = ("fresh_draws", "confidence", "resolved_draws")
"""The options that :meth:`Explanation.refine` takes."""

ROWS = (*(aggregation.name for aggregation in DERIVED), "weighted")
"""The maps made from all methods' maps, as :attr:`Explanation.derived` holds them."""


@dataclass(frozen=True)
class Measured:
    """One criterion of one row.

    Args:
        fit: (B,), on the draws that the weights were fitted to.
        fresh: (B,), on draws that nothing was fitted to.
        stderr: (B,), the standard error of ``fresh``.
    """

    fit: Tensor
    fresh: Tensor
    stderr: Tensor


@dataclass(frozen=True)
class FrontPoints:
    """The front of one input: P mixtures of which none is both more robust and more faithful than another.

    Args:
        robustness: (P,), the criterion named ``criterion``.
        correlation: (P,), the faithfulness correlation.
        weights: (P, k).
        incompatibility: as in :attr:`Explanation.incompatibility`.
        criterion: what robustness is measured by, "noise_over_signal" or "relative_sensitivity".
    """

    robustness: Tensor
    correlation: Tensor
    weights: Tensor
    incompatibility: float
    criterion: str = "relative_sensitivity"

    @classmethod
    def of(cls, front: Front | None, at: int, criterion: str = "relative_sensitivity") -> FrontPoints | None:
        """The points of input ``at``; None where no front was solved, or where it has no point.

        Args:
            front: of all inputs.
            at: the input's place in it.
            criterion: what its robustness is.
        """
        if front is None or not bool(front.keep[at].any()):
            return None
        keep = front.keep[at]
        return cls(
            robustness=front.robustness[at][keep],
            correlation=front.correlation[at][keep],
            weights=front.weights[at][keep],
            incompatibility=float(front.incompatibility[at]),
            criterion=criterion,
        )


@dataclass(frozen=True)
class Explanation:
    """What :func:`consilience.explain` found for B inputs and k methods, and what :func:`consilience.load` reads back.

    ``r["grad_cam"]`` is one row's maps by name. A loaded result is on the CPU and has its maps in float32; everything else is
    as it was.

    Attributes:
        attribution: (B, *A), the combined map, Σ weights_j · maps_j for a weighted sum.
        weights: (B, k), of the methods.
        maps: (B, k, *A), the methods' maps after sign and scale; NaN where one failed.
        derived: (B, 6, *A), mean, var, median, rank, uniform and weighted.
        methods: k names.
        kinds: of each method, what its maps are: "contribution", "gradient" or "relevance".
        objective: what the weights are the optimum of.
        solution: weights with value, gap and status of each input.
        fronts: of each input its front, None where none was solved.
        criteria: criterion → row → :class:`Measured`.
        evidence: "fit" and "fresh" → what the draws say, B entries, since inputs may have different numbers of draws. Without
            "fresh" where nothing was judged (``quick=True``).
        mixing: (B, R), the combined map's coefficients on the methods and the derived maps.
        scales: (B, k), what each method's map was divided by: maps · scales are in the method's own units; NaN where it
            failed, and where an earlier version saved them.
        resolved: sensitivity of weights that are solved anew at every neighbour, "value" and "stderr" (B,); or None.
        completeness: method → (B,), how far its sum is from f(x) − f(baseline), as a share.
        failed: method → why it does not work on this model.
        inputs: (B, *F); None if a version saved them that did not keep them.
        index: places of the B inputs in the batch that was given.
        reasons: what was left out of that batch → why.
        target, predicted: (B,), classes; ``predicted`` is −1 in a loaded result whose model predicts no class.
        score: (B,), what is explained.
        seed, draws, settings: what was asked for, in plain words and numbers.
        counts, seconds: what it took, for all inputs.
        weights_stderr: (B, k), how far the weights would move with other draws; NaN where none were needed.
        differences: criterion → consensus − best single method on the fresh draws, with its error
            (:class:`~consilience.results.difference.PairedDifference`).
        over_uniform: the same beside a map that is the same everywhere.
        warnings: what speaks against the numbers, in sentences.
        about: what :meth:`describe` was told.
        error: (B, *A), of a posterior: the standard error of each mask unit, spread over its features as the map is; None for
            other objectives.
        by_unit: (B, *A), of a posterior: the value of each mask unit spread evenly over its features. ``attribution`` has the
            same sums, and the methods' detail within each unit, of which the masks say nothing.
        certain: (B, *A) int8, of a posterior: 1 and −1 where a feature's region is certain to raise or to lower the score,
            all of them together at 95 %.
        posterior: of each input, "explained" (the share of a left-out mask's fall that is predicted), "methods_share" (how
            much of the answer the methods give), and how many regions are certain.
        stored: of a loaded result, the records as they were read: with the words and versions of the time of writing.
        go_on: how :meth:`refine` goes on; None for a loaded result.
    """

    attribution: Tensor
    weights: Tensor
    maps: Tensor
    derived: Tensor
    methods: tuple[str, ...]
    kinds: tuple[str, ...]
    objective: str
    solution: Solution
    fronts: list[FrontPoints | None]
    criteria: dict[str, dict[str, Measured]]
    evidence: dict[str, list[Evidence]]
    mixing: Tensor
    scales: Tensor
    resolved: dict[str, Tensor] | None
    completeness: dict[str, Tensor]
    failed: dict[str, str]
    inputs: Tensor | None
    index: tuple[int, ...]
    reasons: dict[str, str]
    target: Tensor
    predicted: Tensor
    score: Tensor
    seed: int
    draws: dict[str, Any]
    counts: Counts
    seconds: float
    settings: dict[str, Any]
    weights_stderr: Tensor
    differences: dict[str, PairedDifference]
    warnings: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    stored: tuple[dict[str, Any], ...] = ()
    error: Tensor | None = None
    by_unit: Tensor | None = None
    certain: Tensor | None = None
    posterior: tuple[dict[str, Any], ...] | None = None
    over_uniform: dict[str, PairedDifference] = field(default_factory=dict)
    go_on: GoOn | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        # In the form in which a file gives them back, so that a loaded result equals the one that was saved.
        object.__setattr__(self, "draws", as_json(self.draws))
        object.__setattr__(self, "settings", as_json(self.settings))

    def __getstate__(self) -> dict[str, Any]:
        # A pickled copy goes without the model, which may be large, on a device, or impossible to pickle.
        return {**vars(self), "go_on": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def __len__(self) -> int:
        return len(self.attribution)

    def __getitem__(self, name: str) -> Tensor:
        """One row's maps (B, *A): a method, "mean", "var", "median", "rank", "uniform", "weighted" or "consensus"."""
        if name == "consensus":
            return self.attribution
        rows = [*self.methods, *ROWS]
        place = rows.index(row_named(name, [*rows, "consensus"]))
        if place < len(self.methods):
            return self.maps[:, place]
        return self.derived[:, place - len(self.methods)]

    @property
    def judged(self) -> bool:
        """Whether fresh draws measured how good the answer is; they did not with ``quick=True``."""
        return self.draws["fresh"] is not None

    def refine(self, *, progress: Callable[[float, float], None] | None = None, **options: Any) -> Explanation:
        """The same answer, judged, or judged further, without evaluating again what was evaluated before.

        The result is what the first call would have given with these options. It is the same to the bit where ``max_batch``
        is a number and the number of fresh draws stays; otherwise rows may be evaluated in other batches, and a model's last
        digits may depend on these. The model must not have changed.

        Args:
            progress: called with (work done, work expected), in forward evaluations.
            options: the options of :func:`consilience.explain` on judging: ``fresh_draws``, ``confidence``,
                ``resolved_draws``. Those left out stay as they were; ``quick`` becomes False.

        Raises:
            InputError: the result was loaded or copied, so that it has no model; or an option would change the answer itself.

        Example:
            >>> import torch, consilience as cs
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
            >>> r = cs.explain(net, torch.rand(2, 4), methods="gradient", quick=True)
            >>> r.judged, r.refine().judged
            (False, True)
        """
        if self.go_on is None:
            raise InputError(
                "refine: a loaded or copied result has no model to ask; call consilience.explain(model, r.inputs, …) with the "
                "seed and options of the first call"
            )
        for name in options:
            if name not in REFINED:
                raise InputError(
                    f"refine: {name}={options[name]!r} is not about the judgement, for which there are {', '.join(REFINED)}; "
                    "another answer needs another consilience.explain(…)"
                )
        refined = self.go_on({"quick": False, **options}, progress)
        refined.about.update(self.about)
        return refined

    # -- words ---------------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return self.table()

    __repr__ = __str__

    def table(self) -> str:
        """Methods, aggregations, consensus × criteria: fresh ± standard error, fit; averaged over the inputs."""
        lines = [f"{what} left out: {why}" for what, why in self.reasons.items()]
        # Names of models and methods may contain control sequences of terminals.
        return printable("\n".join([text_table(self.records), *lines]), keep="\n")

    @property
    def records(self) -> list[dict[str, Any]]:
        """B records, see :meth:`record`."""
        return [self.record(i) for i in range(len(self))]

    def record(self, i: int) -> dict[str, Any]:
        """What ``explanation.json`` holds for input ``i``; a number that is not finite is None, with its reason."""
        return record_of(self, i)

    @property
    def tokens(self) -> list[list[str]] | None:
        """Of texts: (B, T) tokens, "" where padded, in the order of the attribution; None for other inputs."""
        given = self.about.get("tokens")
        if given is not None:
            return [given[at] for at in self.index]
        inputs = [record.get("input") or {} for record in self.stored]
        if inputs and all("tokens" in each for each in inputs):
            return [each["tokens"] for each in inputs]
        return None

    @property
    def decides(self) -> bool:
        """Whether the model predicts a class or labels: not in regression, and not known of one output that may be a number."""
        return self.settings.get("outputs") not in ("values", "one output")

    @property
    def feature_names(self) -> list[str] | None:
        """(A,) of a table whose columns have names; None for other inputs."""
        given = self.about.get("features")
        if given is None and self.stored:
            given = (self.stored[0].get("input") or {}).get("features")
        return None if given is None else [str(name) for name in given]

    def describe(self, **about: Any) -> Explanation:
        """Add what only the caller knows, and return the same object.

        Args:
            about: ``model``, its name; ``labels``, the classes' names; ``names`` (B,) of the inputs; ``features`` (A,), the
                features' names; ``images`` (B, H, W, 3) in 0…1 to show; ``sources`` (B,), mappings for the record's
                ``input``.
        """
        self.about.update(about)
        return self

    # -- certificates --------------------------------------------------------------------------------------------------

    @cached_property
    def diversity_gain(self) -> Tensor:
        """(B,): what mixing gains over its parts in absolute sensitivity, Σ_j w_j G_jj − wᵀGw; ≥ 0 for convex weights.

        NaN where no neighbours were drawn, and for a posterior.
        """
        quadratics = [each.clean().quadratic for each in self.evidence["fit"]]
        measured = [part.matrix for part in quadratics if part is not None]
        if len(measured) < len(self) or self.posterior is not None:
            return self.mixing.new_full((len(self),), torch.nan)
        matrix = torch.cat(measured)
        w = self.mixing
        return torch.einsum("br,brr->b", w, matrix) - torch.einsum("br,brt,bt->b", w, matrix, w)

    @property
    def incompatibility(self) -> Tensor:
        """(B,): how far robustness and faithfulness exclude each other, on the fitting draws.

        0: one mixture is best in both. 0.2: the best compromise loses a fifth of one or the other. NaN where no front was
        solved for each input, as "opt" does.
        """
        values = [torch.nan if points is None else points.incompatibility for points in self.fronts]
        return torch.tensor(values, dtype=torch.float64)

    def hoeffding(self, delta: float = 0.05) -> float:
        """A bound of Q(ŵ) − min Q that holds with probability 1 − δ over the m draws, whatever they show.

        Q is the absolute sensitivity, ŵ the weights that minimise it on the draws ("paper_robust"); see
        :func:`~consilience.statistics.bounds.weights_bound`. The fresh value is usually far smaller. Where the draws themselves
        decided how large m became, the bound holds for the m of every round at once.

        Args:
            delta: δ.

        Raises:
            InputError: the maps are not scaled, or δ is not a probability.
        """
        square = largest_change(self.maps[0, 0].numel(), self.settings["sign"], self.settings["scale"])
        draws = min(fit["average_sensitivity"] for fit in self.draws["fit"])
        rounds = 1
        # Each round doubled the number of draws, from the first one on.
        if any(fit["stopped"] != "as asked" for fit in self.draws["fit"]):
            rounds += max(0, math.ceil(math.log2(draws / FIRST.average_sensitivity)))
        return weights_bound(len(self.methods), draws, square, delta, rounds)

    # -- pictures and files --------------------------------------------------------------------------------------------

    def entries(self) -> Sequence[Entry]:
        """B entries for the report, each made when it is used."""
        return Entries(len(self), self.entry)

    def entry(self, i: int) -> Entry:
        """Input ``i`` as plain data: its record, picture and maps."""
        images = self.about.get("images")
        image = None
        if images is not None:
            image = images[i]
        elif self.inputs is not None:
            image = picture_of(_array(self.inputs[i]))
        return Entry(
            record=self.record(i),
            image=image,
            maps=_array(self.maps[i]),
            attribution=_array(self.attribution[i]),
            name=name_of(self, i),
            extra={name: _array(self[name][i]) for name in ROWS if name != "uniform"},
            error=None if self.error is None else _array(self.error[i]),
            by_unit=None if self.by_unit is None else _array(self.by_unit[i]),
            certain=None if self.certain is None else _array(self.certain[i]),
        )

    def plot(self, i: int = 0) -> Any:
        """A matplotlib figure of input ``i``: the image, the combined map, every method's map with weight and quality."""
        from ..report.figure import figure

        return figure(self.entry(i))

    def report(self, path: str | Path, title: str = "Explanations") -> Path:
        """Write one self-contained HTML page over all inputs to ``path``, under a ``title``.

        Raises:
            InputError: ``path`` cannot be written.
        """
        from ..report.page import pieces

        return write_text(output(path), pieces(self.entries(), title, failures=list(self.reasons.items())))

    def save(self, directory: str | Path) -> Path:
        """Write a folder for each input, with ``explanation.json`` and ``attributions.safetensors``, and a list, ``run.json``.

        :func:`consilience.load` reads them. A run that was saved there before is replaced in one step: whatever happens
        meanwhile, either the old run or the new one is there. Other files in the folder stay.

        Args:
            directory: the run's folder; made if there is none.

        Raises:
            InputError: it cannot be written; a file or folder of another origin is in the way; another process writes there.
        """
        folders = [f"{i:03d}" for i in range(len(self))]
        with RunFolder(directory) as run:
            run.discard()
            try:
                for i, folder in enumerate(folders):
                    run.add(folder, self.entry(i), self.arrays(i))
                run.commit(folders, self.reasons)
            except BaseException:
                run.discard()
                raise
        return Path(directory)

    def arrays(self, i: int) -> dict[str, np.ndarray]:
        """The arrays that a file holds of input ``i`` beside its entry: the input, weights, and evidence.

        With the evidence, tables and fronts can be computed again.
        """
        tensors = {"weights": self.weights[i], "mixing": self.mixing[i], "uniform": self["uniform"][i].float()}
        tensors["scales"] = self.scales[i].double()
        if self.inputs is not None:
            tensors["inputs"] = self.inputs[i]
            if self.inputs.dtype == torch.bfloat16:  # which NumPy does not have
                tensors["inputs"] = self.inputs[i].float()
        for stream, evidence in self.evidence.items():
            for name, value in evidence_arrays(evidence[i]).items():
                tensors[f"{stream}.{name}"] = value
        for name, values in (("error", self.error), ("by_unit", self.by_unit), ("certain", self.certain)):
            if values is not None:
                tensors[name] = values[i]
        return {name: value.detach().cpu().numpy() for name, value in tensors.items()}


def evidence_arrays(evidence: Evidence) -> Mapping[str, Tensor]:
    """The ``evidence`` of one input (B = 1) as arrays (S, …), by their names in files."""
    tensors = {}
    for kind, part in evidence.parts.items():
        # The first two kinds of evidence have no prefix, because files had them before there were others.
        prefix = "" if kind in ("quadratic", "responses") else f"{kind}."
        if isinstance(part, Quadratic):
            tensors[f"{prefix}gram"] = part.draws[0]
            tensors[f"{prefix}norm"] = part.norm[0]
        else:
            tensors[f"{prefix}responses"] = part.a[0]
            tensors[f"{prefix}falls"] = part.y[0]
            if part.size is not None:
                tensors[f"{prefix}sizes"] = part.size[0]
        if part.whole is not None:
            tensors[f"{prefix}exact"] = part.whole
    return tensors


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor on any device, of any precision, as float32 on the CPU."""
    return tensor.detach().float().cpu().numpy()
