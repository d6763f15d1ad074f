"""One output of a model, for a batch of inputs, evaluated on rows that say to which input they belong.

``Score`` ends loose ``target`` arguments: what "predicted" and the runner-up are is resolved once, at x, and stays the
same for every neighbour. Rows are (N, *F) with ``owner`` (N,): row i is judged by the target, masks and keyword tensors
of input ``owner[i]``.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import ConsilienceError, InputError, choose
from ..signatures import KnownArguments
from . import cam_layers as cam
from .arguments import Arguments, resolved
from .batching import Batch, Counts
from .calling import from_numpy, layout_of, one_vector_each, precision_of
from .evaluation import Rows, Wanted, gradients, scores
from .independence import Dependence, dependence_of
from .outputs import SCORE_KINDS, Kind, Outputs
from .parts import Parts
from .random_state import forked, seeded
from .recognition import interpret, last_layer_of
from .state import borrowed, check_ready
from .targets import resolve_target
from .values import Values, wide

T = TypeVar("T")


PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Score(KnownArguments):
    """``Score(model, target).at(x)`` is a function of rows: ``score(rows, owner) → (N,)``.

    Args:
        model: an ``nn.Module``, or any callable from a batch of inputs to one vector of outputs per input. A callable
            that takes and gives NumPy arrays (scikit-learn's ``predict_proba``) has no gradients.
        target: None or "predicted" (the largest output at x), an integer, or integers (B,). A single output that is
            known to be a logit or a probability is that of class 1: target 1 or None explain it, target 0 the other class,
            "predicted" the more likely one. Any other single output is number 0.
        kind: "logit" (the output itself), "probability", "log_probability", "margin" (target minus the runner-up at x),
            "output" (for regression: the only output, or output number ``target``), a :class:`~.outputs.Kind`, which says what
            the outputs mean too, or a callable (outputs, target) → (N,). What outputs mean: :func:`~.recognition.interpret`.
        kwargs: further arguments of the model. Which of them have one entry for each input is said by
            :func:`~.arguments.per_input` and :func:`~.arguments.constant`, else found (:func:`~.arguments.resolved`).
        ids: (B,) identities of the inputs, which name their random draws; default 0 … B − 1.
        max_batch: rows in flight, or "auto".
        numpy: the callable wants NumPy arrays.
        precision: None, as the model is; "bfloat16" or "float16" run it under autocast, faster where the processor multiplies
            these. Gradients, folds and sums stay in float32 or better, but scores are rounded to 8 or 11 bits; what is resolved
            at x (the target, ``outputs``, ``clean``) is in full precision.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        target: Any = None,
        *,
        kind: str | Kind | Callable[[Tensor, Tensor], Tensor] = "logit",
        kwargs: Mapping[str, Any] | None = None,
        ids: Any = None,
        max_batch: int | str = "auto",
        numpy: bool = False,
        precision: str | None = None,
    ) -> None:
        if isinstance(model, type):
            raise InputError(f"model: {model.__name__} is a class; give an instance, e.g. {model.__name__}(…)")
        if not callable(model):
            raise InputError(f"model: expected an nn.Module or a callable, got {type(model).__name__}")
        self.precision = None if precision is None else PRECISIONS[choose("precision", precision, PRECISIONS)]
        if precision is not None and numpy:
            raise InputError(f"precision: {precision!r} is for PyTorch models; this one takes NumPy arrays")
        self.model = model
        self.target = target
        self.said = kind.outputs if isinstance(kind, Kind) else None
        name = kind.name if isinstance(kind, Kind) else kind
        self.kind = name if callable(name) else choose("kind", name, SCORE_KINDS)
        self.kwargs = dict(kwargs or {})
        self.ids = ids
        self.numpy = numpy
        self.batch = Batch(max_batch)
        self.counts = Counts()

    # What .at(x) resolves.
    size: int
    spatial: tuple[int, int] | None
    layout: torch.memory_format
    outputs: Tensor
    clean: Tensor
    meaning: Outputs
    targets: Tensor
    runner_up: Tensor
    _arguments: Arguments
    _layers: dict[str, cam.Layer]
    _parts: Parts
    dependence = Dependence.NOTHING
    """What a row's outputs depend on besides the row; looked for if ``at`` is asked to."""

    # -- resolving -----------------------------------------------------------------------------------------------------

    def at(self, x: Tensor, index: Tensor | None = None, *, check_rows: bool = False) -> Score:
        """This score with target, runner-up and ids resolved at ``x``: ``outputs`` (B, classes), ``clean`` (B,).

        Args:
            x: inputs (B, *F).
            index: (n,) evaluate these inputs only; what belongs to the others is NaN. Default: all.
            check_rows: look, in three passes of two rows, whether a row's outputs depend on the rows beside it or on chance
                (``dependence``, ``row_warnings``). Where they do and it helps, every row is run alone from then on.

        Raises:
            InputError: outputs that are not one vector per input; targets out of range; a model that fails on ``x``.
        """
        check_ready(self.model)
        bound = copy.copy(self)
        count = len(x)
        bound.size = count
        bound.spatial = (x.shape[2], x.shape[3]) if x.ndim == 4 else None
        bound.layout = layout_of(self.model, x)
        bound.batch.fit(x)
        bound.ids = torch.arange(count) if self.ids is None else torch.as_tensor(self.ids, dtype=torch.int64).cpu()
        if bound.ids.shape != (count,):
            raise InputError(f"ids: expected one per input ({count}), got shape {tuple(bound.ids.shape)}")
        bound.ids = bound.ids.to(x.device)
        bound._layers = {}
        bound._parts = Parts(self.model)
        owner = torch.arange(count, device=x.device)
        index = owner if index is None else index
        if bound.precision is not None and x.dtype == torch.float64:
            raise InputError("precision: autocast leaves float64 as it is; give a float32 model and inputs")
        full = copy.copy(bound)
        full.precision = None
        bound._arguments = full._arguments = full._resolve_arguments(x, index)
        if check_rows:
            full.dependence = bound.dependence = full._dependence(x, index)
            if bound.dependence.run_alone:
                full.batch = bound.batch = Batch(1)
        try:
            found = torch.cat(full._batched(len(index), lambda part: full._clean_outputs(x, index[part])))
        except Exception as error:
            if isinstance(error, ConsilienceError | torch.OutOfMemoryError | MemoryError):
                raise
            raise InputError(self._failed(x, error)) from error
        outputs = found.new_full((count, found.shape[1]), torch.nan)
        outputs[index] = found
        bound.outputs = outputs
        bound.meaning = full._meaning(found, x[index], index)
        bound.targets = bound._resolve(outputs)
        bound.runner_up = bound.meaning.runner_up(outputs, bound.targets)
        with torch.no_grad():
            bound.clean = bound._pick(outputs, owner)
        return bound

    @property
    def row_warnings(self) -> tuple[str, ...]:
        """What a row's outputs depend on besides the row, in words; nothing where they are its own."""
        warning = self.dependence.warning
        return () if warning is None else (warning,)

    def _clean_outputs(self, x: Tensor, index: Tensor) -> Tensor:
        """The outputs of some inputs, as one batch, (n, classes), without gradients."""
        with torch.no_grad(), self._borrowed(freeze=True):
            return self._outputs(x[index], index)

    def _dependence(self, x: Tensor, index: Tensor) -> Dependence:
        """Three passes of two rows; nothing is said of a model that fails on them."""

        seeds = itertools.count()

        def run(rows: Tensor, owner: Tensor) -> tuple[Tensor, bool]:
            self.counts.add(len(rows), False)
            # A model lent anew for each pass: buffers that a pass moves must not make the next one differ.
            with borrowed(self.model, freeze=True, draws=True):
                return seeded(lambda: self._outputs(rows.clone(), owner), next(seeds))

        try:
            with torch.no_grad():
                return dependence_of(run, x[index], index)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError | MemoryError):
                raise
            return Dependence.NOTHING

    def _borrowed(self, freeze: bool) -> contextlib.AbstractContextManager[None]:
        """The model, for one batch. What draws from the process's generators has them for itself."""
        return borrowed(self.model, freeze, draws=self.dependence is Dependence.DRAWS, parts=self._parts)

    def _failed(self, x: Tensor, error: Exception) -> str:
        """What to say of a model that does not take ``x``."""
        own = precision_of(self.model) or x.dtype
        if own != x.dtype:
            remedy = f"its parameters are {own}: cast x to that"
        elif isinstance(error, TypeError):
            remedy = "further arguments of the model are given as kwargs={name: value}"
        else:
            remedy = "is this the shape (batch first, then channels for images) that the model takes?"
        said = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        return f"x: the model fails on {tuple(x.shape)} {x.dtype}: {said}; {remedy}"

    def warnings(self) -> list[str]:
        """What the caller should know of the outputs, see :meth:`Outputs.warnings`."""
        return self.meaning.warnings(self.kind, isinstance(self.model, nn.Module))

    @property
    def described(self) -> dict[str, str]:
        """For records: the ``kind`` asked for, what the ``outputs`` mean, and what the ``score`` is called."""
        kind = self.kind if isinstance(self.kind, str) else getattr(self.kind, "__name__", repr(self.kind))
        name = self.meaning.named(self.kind) if isinstance(self.kind, str) else "score"
        return {"kind": kind, "outputs": self.meaning.described, "score": name}

    def using(self, model: Callable[..., Any]) -> Score:
        """The same question to another model (of the same inputs and outputs): targets stay, layers are looked up anew."""
        other = copy.copy(self)
        other.model = model
        other._layers = {}
        other._parts = Parts(model)
        return other

    def towards(self, targets: Tensor) -> Score:
        """The same model asked for other outputs (B,) int64; the runner-up is what is largest besides."""
        other = copy.copy(self)
        other.targets = targets.to(self.outputs.device)
        other.runner_up = self.meaning.runner_up(self.outputs, other.targets)
        owner = torch.arange(self.size, device=self.outputs.device)
        other.clean = other._pick(self.outputs, owner)
        return other

    def outputs_of(self, rows: Tensor, owner: Tensor) -> Tensor:
        """(N, *F), (N,) → (N, classes): every output, for what needs more than the explained one (accuracy, ROS)."""

        def run(part: slice) -> Tensor:
            with self._borrowed(freeze=True):
                return wide(self._outputs(rows[part].clone(memory_format=self.layout), owner[part]))

        with torch.no_grad():
            return torch.cat(self._batched(len(rows), run))

    def _resolve_arguments(self, x: Tensor, index: Tensor) -> Arguments:
        """Which keyword arguments follow the inputs ``x`` (B, *F), tried on copies of the first one that is evaluated."""

        def accepts(arguments: Arguments, count: int) -> Exception | None:
            first = index[:1].expand(count)
            self.counts.add(count, False)
            try:
                with torch.no_grad(), borrowed(self.model, freeze=True):
                    self._call(x[first], arguments.of(first, self.numpy))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a model raises that is called in another way than it is meant
                return error
            return None

        return resolved(self.kwargs, len(x), accepts)

    def _meaning(self, found: Tensor, x: Tensor, index: Tensor) -> Outputs:
        """What the outputs ``found`` (n, O) at ``x`` (n, *F) mean."""
        finite = found.isfinite().all(1)

        def last_layer() -> str | None:
            if self.numpy:
                return None
            first = finite.nonzero()[:1, 0]
            self.counts.add(1, False)
            with torch.enable_grad(), self._borrowed(freeze=True):
                return last_layer_of(self._outputs(x[first].clone().requires_grad_().clone(), index[first]))

        outputs = wide(found[finite])
        return interpret(outputs, self.kind, declared=self.said, model=self.model, last_layer=last_layer)

    def _resolve(self, outputs: Tensor) -> Tensor:
        """(B,): the target of each input."""
        return resolve_target(self.target, outputs, self.meaning, self.kind)

    # -- evaluating ----------------------------------------------------------------------------------------------------

    def __call__(self, rows: Tensor, owner: Tensor) -> Tensor:
        """(N, *F), (N,) → (N,), without gradients."""
        return self.evaluate(rows, owner).score

    def grad(self, rows: Tensor, owner: Tensor, rule: str | None = None) -> Tensor:
        """Gradient of each row's score with respect to that row, (N, *F)."""
        gradient = self.evaluate(rows, owner, gradient=True, rule=rule).gradient
        assert gradient is not None
        return gradient

    def evaluate(
        self,
        rows: Tensor,
        owner: Tensor,
        *,
        gradient: bool = False,
        rule: str | None = None,
        layers: Sequence[str] = (),
        origin: Tensor | None = None,
        graph: bool = False,
        targets: Tensor | None = None,
        layer_rows: int | None = None,
    ) -> Values:
        """Evaluate rows in batches of at most ``max_batch``.

        Args:
            rows: (N, *F).
            owner: (N,), to which inputs they belong.
            gradient: also the gradient with respect to the rows.
            rule: of the backward pass: None, "guided" or "rescale".
            layers: whose activations are wanted, by name or "auto"; for these alone the backward pass ends there.
            origin: (N, *F), the rows' baselines, for the rescale rule.
            graph: keep the graph, through rows and parameters, for a loss.
            targets: (N,) int64, the output asked of each row; None: that of its input.
            layer_rows: activations are wanted of so many rows, the first ones; None: of all.

        Raises:
            InputError: gradients are asked of a model that has none.
        """
        back = gradient or bool(layers)
        if back and self.numpy:
            raise InputError(
                "model: a NumPy callable has no gradients; use methods that need outputs only, e.g. methods='black_box'"
            )
        if rule == "rescale" and self.dependence is not Dependence.NOTHING:
            raise InputError(
                "model: the rescale rule of DeepLIFT evaluates an input and its baseline in one batch, but this model's "
                f"outputs depend on {self.dependence.value}; use integrated_gradients"
            )
        asked = Rows(rows, owner, targets, origin)
        chosen = {name: self.layer(name, rows[:1], owner[:1]) for name in layers}
        looking = len(rows) if layer_rows is None else layer_rows
        module = self.model if isinstance(self.model, nn.Module) else None
        half = torch.float16 in (rows.dtype, self.precision)

        def run(part: slice) -> Values:
            wanted = Wanted(gradient, rule, chosen, looking - part.start, graph, self.layout, half)
            if looking <= part.start:
                wanted = replace(wanted, layers={})
            # Whether there is a graph decides how a model is lent, too.
            with torch.set_grad_enabled(back or graph), self._borrowed(freeze=not graph):
                if back:
                    return gradients(self._ask, module, asked[part], wanted)
                return scores(self._ask, asked[part], wanted)

        return Values.concatenate(self._batched(len(rows), run, back, 2 if rule == "rescale" else 1))

    def _batched(self, count: int, run: Callable[[slice], T], gradient: bool = False, per: int = 1) -> list[T]:
        """``run`` over ``count`` rows, in equal batches of at most ``max_batch``; a row costs ``per`` evaluations. Timed and
        counted; out of memory halves the batch and goes on."""
        parts: list[T] = []
        start = 0
        while start < count:
            batches = -(-(count - start) // max(1, self.batch.size(gradient) // per))
            part = slice(start, start + -(-(count - start) // batches))
            began = self.batch.clock(gradient)
            try:
                parts.append(run(part))
            except torch.OutOfMemoryError:
                if not self.batch.halve(gradient):
                    raise
                continue
            rows = (part.stop - part.start) * per
            self.batch.took(rows, self.batch.clock(gradient) - began, gradient)
            self.counts.add(rows, gradient)
            start = part.stop
        return parts

    def asked(self, owner: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Points of several questions, one question for each input at a time: for explainers that ask this score.

        Args:
            owner: (N,), to which inputs the points belong.
            targets: (N,), the output that each is asked about.

        Yields:
            targets (B,) for :meth:`towards`, and the places (n,) of the points that ask for these.
        """
        left = torch.arange(len(owner), device=owner.device)
        while len(left):
            # Whichever point of an input is written last says what is asked of that input this time.
            now = self.targets.clone()
            now[owner[left]] = targets[left]
            served = now[owner[left]] == targets[left]
            yield now, left[served]
            left = left[~served]

    def layer(self, name: str, rows: Tensor, owner: Tensor) -> cam.Layer:
        """The layer that class activation maps use; "auto" finds it by a probe of five rows. Remembered."""
        if name not in self._layers:
            self.counts.add(len(rows), True)
            if not isinstance(self.model, nn.Module):
                raise InputError("model: activations need an nn.Module, not a plain callable")
            if self.spatial is None:
                raise InputError("methods: class activation maps are for images (B, C, H, W)")
            self.counts.add(cam.PROBE_FORWARDS, False)
            # The model's first and last output, not the targets: the layer is the same whatever is in the batch.
            classes = sorted({0, self.outputs.shape[1] - 1})
            asked = [self.towards(torch.full_like(self.targets, number)) for number in classes]

            def ask(picture: Tensor) -> Tensor:
                outputs = self._outputs(picture.clone(), owner)
                return torch.stack([score._pick(outputs, owner)[0] for score in asked])

            with torch.enable_grad(), self._borrowed(freeze=True):
                if name == "auto":
                    self._layers[name] = cam.find(self.model, ask, rows)
                else:
                    self._layers[name] = cam.named(self.model, name, ask, rows)
        return self._layers[name]

    def module(self) -> nn.Module:
        """This score as an ``nn.Module``, ``(rows (N, *F), owner (N,)) → (N,)``, for libraries that want one.

        Captum expands rows in two orders, step by step or input by input, and whatever it is given in
        ``additional_forward_args=(owner,)`` along with them: so every row finds its target. Only for a single input may
        ``owner`` be left out. Whatever wraps the call decides on gradients, mode and random state.
        """
        return _Module(self)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _outputs(self, rows: Tensor, owner: Tensor) -> Tensor:
        """(N, classes)."""
        return self._call(rows, self._arguments.of(owner, self.numpy))

    def _call(self, rows: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """The model's outputs (N, classes) for rows (N, *F)."""
        if self.numpy:
            found = self.model(rows.detach().cpu().numpy(), **kwargs)
            outputs = found if isinstance(found, dict | tuple) else from_numpy(found).to(rows.device)
        else:
            # Not autocast(enabled=False): that would end an autocast of the caller's.
            half = self.precision is not None
            with torch.autocast(rows.device.type, self.precision) if half else contextlib.nullcontext():
                outputs = self.model(rows, **kwargs)
        return one_vector_each(outputs, rows)

    def _ask(self, rows: Rows) -> Tensor:
        """(N,): the score of one batch of rows."""
        return self._pick(self._outputs(rows.x, rows.owner), rows.owner, rows.targets)

    def _pick(self, outputs: Tensor, owner: Tensor, targets: Tensor | None = None) -> Tensor:
        """(N,), in float32 or better: of outputs (N, classes) the explained number.

        Args:
            outputs: of N rows.
            owner: (N,), to which inputs they belong.
            targets: (N,), the output asked of each; None: that of its input.
        """
        outputs = outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
        if targets is None:
            target = self.targets[owner]
            runner_up = self.runner_up[owner]
        else:
            target = targets
            runner_up = self.meaning.runner_up(self.outputs[owner], targets)
        if callable(self.kind):
            value = self.kind(outputs, target)
            if value.shape != target.shape:
                raise InputError(
                    f"kind: the callable returned shape {tuple(value.shape)}, expected {tuple(target.shape)}"
                )
            return value
        return self.meaning.score(self.kind, outputs, target, runner_up)


class _Module(nn.Module):
    def __init__(self, score: Score):
        super().__init__()
        self.score = score
        self.inner = score.model if isinstance(score.model, nn.Module) else None

    def forward(self, rows: Tensor, owner: Tensor | None = None) -> Tensor:
        if owner is None and self.score.size == 1:
            owner = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        if owner is None or owner.shape != (len(rows),):
            given = "none" if owner is None else f"shape {tuple(owner.shape)}"
            raise InputError(
                f"owner: {len(rows)} rows of {self.score.size} inputs need one owner each, got {given}; give it where the rows "
                "are given, with Captum as additional_forward_args=(owner,)"
            )
        self.score.counts.add(len(rows), torch.is_grad_enabled())
        if self.score.dependence.run_alone:
            return torch.cat([self._run(rows[i : i + 1], owner[i : i + 1]) for i in range(len(rows))])
        return self._run(rows, owner)

    def _run(self, rows: Tensor, owner: Tensor) -> Tensor:
        # A copy, as everywhere: models that start with an in-place operation must not write to the caller's rows.
        rows = rows.clone(memory_format=self.score.layout)
        same_draws = forked() if self.score.dependence is Dependence.DRAWS else contextlib.nullcontext()
        with same_draws:
            return self.score._pick(self.score._outputs(rows, owner), owner)
