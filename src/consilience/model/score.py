"""The score that is explained: one output of a model, for a batch of inputs, as a function of rows.

What the target, "predicted" and the runner-up are is resolved once, at x, and stays the same for every neighbour. Rows are
(N, *F) and say to which input they belong: ``owner`` (N,). Row i is judged by the target, masks and keyword tensors of input
``owner[i]``. :mod:`.evaluation` evaluates one batch of rows, :mod:`.batching` chooses how large it is.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, choose
from ..signatures import KnownArguments
from . import cam_layers as cam
from .arguments import Arguments
from .batching import Batch, Counts
from .calling import from_numpy, layout_of, one_vector_each
from .evaluation import Rows, Wanted, gradients, scores
from .independence import Dependence
from .outputs import SCORE_KINDS, Kind, Outputs
from .parts import Parts
from .resolution import arguments_at, dependence_at, meaning_at, outputs_at
from .score_module import ScoreModule
from .state import borrowed, check_ready
from .targets import resolve_target
from .values import Values, wide

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""The precisions in which a model may be run under autocast."""


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
        kwargs: further arguments of the model. :func:`~.arguments.per_input` and :func:`~.arguments.constant` declare which of
            them have one entry for each input; of the others the model tells (:func:`~.arguments.resolved`).
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
        self.precision: torch.dtype | None = None
        if precision is not None:
            self.precision = PRECISIONS[choose("precision", precision, PRECISIONS)]
        if precision is not None and numpy:
            raise InputError(f"precision: {precision!r} is for PyTorch models; this one takes NumPy arrays")
        self.model = model
        self.target = target
        self.declared = kind.outputs if isinstance(kind, Kind) else None
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
        bound = self._for_inputs(x)
        owner = torch.arange(len(x), device=x.device)
        index = owner if index is None else index
        # What is resolved here is resolved in full precision, and then asked of the bound score in its own.
        full = copy.copy(bound)
        full.precision = None
        bound._arguments = full._arguments = arguments_at(full, x, index)
        if check_rows:
            full.dependence = bound.dependence = dependence_at(full, x, index)
            if bound.dependence.run_alone:
                full.batch = bound.batch = Batch(1)
        evaluated = outputs_at(full, x, index)
        # What is not evaluated is NaN, so that nobody takes it for a number.
        outputs = evaluated.new_full((len(x), evaluated.shape[1]), torch.nan)
        outputs[index] = evaluated
        bound.outputs = outputs
        bound.meaning = meaning_at(full, evaluated, x[index], index)
        bound.targets = resolve_target(self.target, outputs, bound.meaning, self.kind)
        bound.runner_up = bound.meaning.runner_up(outputs, bound.targets)
        with torch.no_grad():
            bound.clean = bound.of_outputs(outputs, owner)
        return bound

    def _for_inputs(self, x: Tensor) -> Score:
        """A copy for inputs of this number, shape and type, of which nothing is evaluated yet."""
        if self.precision is not None and x.dtype == torch.float64:
            raise InputError("precision: autocast leaves float64 as it is; give a float32 model and inputs")
        count = len(x)
        # Shallow: copies share the counts, and what was learnt of the size of batches.
        bound = copy.copy(self)
        bound.size = count
        bound.spatial = (x.shape[2], x.shape[3]) if x.ndim == 4 else None
        bound.layout = layout_of(self.model, x)
        bound.batch.fit(x)
        bound.ids = torch.arange(count)
        if self.ids is not None:
            bound.ids = torch.as_tensor(self.ids, dtype=torch.int64).cpu()
        if bound.ids.shape != (count,):
            raise InputError(f"ids: expected one per input ({count}), got shape {tuple(bound.ids.shape)}")
        bound.ids = bound.ids.to(x.device)
        bound._layers = {}
        bound._parts = Parts(self.model)
        return bound

    @property
    def row_warnings(self) -> tuple[str, ...]:
        """What a row's outputs depend on besides the row, in words; nothing where they are its own."""
        warning = self.dependence.warning
        return () if warning is None else (warning,)

    def borrowed(self, freeze: bool) -> contextlib.AbstractContextManager[None]:
        """The model, for one batch (:func:`~.state.borrowed`).

        Args:
            freeze: parameters ask for no gradient meanwhile.
        """
        # What draws from the process's generators has them for itself.
        return borrowed(self.model, freeze, draws=self.dependence is Dependence.DRAWS, parts=self._parts)

    def warnings(self) -> list[str]:
        """What the caller should know of the outputs, see :meth:`Outputs.warnings`."""
        return self.meaning.warnings(self.kind, isinstance(self.model, nn.Module))

    @property
    def described(self) -> dict[str, str]:
        """For records: the ``kind`` asked for, what the ``outputs`` mean, and what the ``score`` is called."""
        if isinstance(self.kind, str):
            kind = self.kind
            name = self.meaning.named(kind)
        else:
            kind = getattr(self.kind, "__name__", repr(self.kind))
            name = "score"
        return {"kind": kind, "outputs": self.meaning.described, "score": name}

    def using(self, model: Callable[..., Any]) -> Score:
        """The same question to another model: targets stay, layers are looked up anew.

        Args:
            model: of the same inputs and outputs.
        """
        other = copy.copy(self)
        other.model = model
        other._layers = {}
        other._parts = Parts(model)
        return other

    def towards(self, targets: Tensor) -> Score:
        """The same model asked for other outputs; the runner-up is what is largest besides.

        Args:
            targets: (B,) int64.
        """
        other = copy.copy(self)
        other.targets = targets.to(self.outputs.device)
        other.runner_up = self.meaning.runner_up(self.outputs, other.targets)
        owner = torch.arange(self.size, device=self.outputs.device)
        other.clean = other.of_outputs(self.outputs, owner)
        return other

    def outputs_of(self, rows: Tensor, owner: Tensor) -> Tensor:
        """Every output of each row, (N, classes), for what needs more than the explained one (accuracy, ROS).

        Args:
            rows: (N, *F).
            owner: (N,), to which inputs they belong.
        """

        def run(part: slice) -> Tensor:
            copied = rows[part].clone(memory_format=self.layout)
            with self.borrowed(freeze=True):
                return wide(self.outputs_with_graph(copied, owner[part]))

        with torch.no_grad():
            return torch.cat(self.batch.run(len(rows), run, self.counts))

    # -- evaluating ----------------------------------------------------------------------------------------------------

    def __call__(self, rows: Tensor, owner: Tensor) -> Tensor:
        """The score of each row, (N,), without gradients."""
        return self.evaluate(rows, owner).score

    def grad(self, rows: Tensor, owner: Tensor, rule: str | None = None) -> Tensor:
        """The gradient of each row's score with respect to that row, (N, *F).

        Args:
            rows: (N, *F).
            owner: (N,), to which inputs they belong.
            rule: of the backward pass: None, "guided" or "rescale".

        Raises:
            InputError: as :meth:`evaluate`.
        """
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
            with torch.set_grad_enabled(back or graph), self.borrowed(freeze=not graph):
                if back:
                    return gradients(self._ask, module, asked[part], wanted)
                return scores(self._ask, asked[part], wanted)

        # Under the rescale rule every row is evaluated beside its baseline.
        evaluations = 2 if rule == "rescale" else 1
        return Values.concatenate(self.batch.run(len(rows), run, self.counts, back, evaluations))

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
        """The layer that class activation maps use. It is remembered.

        Args:
            name: a submodule's name, see :func:`~.cam_layers.named`; "auto" finds one by a probe of one to five rows.
            rows: (1, C, H, W), an image.
            owner: (1,), to which input it belongs.

        Raises:
            InputError: the model is not an ``nn.Module``, the inputs are not images, or no layer fits.
        """
        if name in self._layers:
            return self._layers[name]
        if not isinstance(self.model, nn.Module):
            raise InputError("model: activations need an nn.Module, not a plain callable")
        if self.spatial is None:
            raise InputError("methods: class activation maps are for images (B, C, H, W)")
        # The model's first and last output, not the targets: the layer is the same whatever is in the batch.
        classes = sorted({0, self.outputs.shape[1] - 1})
        asked = [self.towards(torch.full_like(self.targets, number)) for number in classes]

        def ask(picture: Tensor) -> Tensor:
            self.counts.add(len(picture), torch.is_grad_enabled())
            outputs = self.outputs_with_graph(picture.clone(), owner)
            return torch.stack([score.of_outputs(outputs, owner)[0] for score in asked])

        with torch.enable_grad(), self.borrowed(freeze=True):
            if name == "auto":
                layer = cam.find(self.model, ask, rows)
            else:
                layer = cam.named(self.model, name, ask, rows)
        self._layers[name] = layer
        return layer

    def module(self) -> nn.Module:
        """This score as an ``nn.Module``, ``(rows (N, *F), owner (N,)) → (N,)``, for libraries that want one.

        Captum expands rows in two orders, step by step or input by input, and whatever it is given in
        ``additional_forward_args=(owner,)`` along with them: so every row finds its target. Only for a single input may
        ``owner`` be left out. Whatever wraps the call decides on gradients, mode and random state.
        """
        return ScoreModule(self)

    # -- one batch of rows ---------------------------------------------------------------------------------------------

    def outputs_with_graph(self, rows: Tensor, owner: Tensor) -> Tensor:
        """The model's outputs for one batch of rows as it is, (N, classes), with their graph under grad.

        Whoever calls it borrows the model (:func:`~.state.borrowed`) and counts the rows.

        Args:
            rows: (N, *F).
            owner: (N,), to which inputs they belong.
        """
        return self.call(rows, self._arguments.of(owner, self.numpy))

    def call(self, rows: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """The model's outputs (N, classes), with keyword arguments as they are.

        Args:
            rows: (N, *F).
            kwargs: of the model.

        Raises:
            InputError: what it gives is not one vector for each row.
        """
        if self.numpy:
            given = self.model(rows.detach().cpu().numpy(), **kwargs)
            # Containers have an error of their own, with an example of how a number is taken out.
            is_container = isinstance(given, dict | tuple)
            return one_vector_each(given if is_container else from_numpy(given).to(rows.device), rows)
        # Not autocast(enabled=False): that would end an autocast of the caller's.
        autocast: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self.precision is not None:
            autocast = torch.autocast(rows.device.type, self.precision)
        with autocast:
            outputs = self.model(rows, **kwargs)
        return one_vector_each(outputs, rows)

    def _ask(self, rows: Rows) -> Tensor:
        """(N,): the score of one batch of rows."""
        return self.of_outputs(self.outputs_with_graph(rows.x, rows.owner), rows.owner, rows.targets)

    def of_outputs(self, outputs: Tensor, owner: Tensor, targets: Tensor | None = None) -> Tensor:
        """The explained number of each row's outputs, (N,), in float32 or better.

        Args:
            outputs: (N, classes).
            owner: (N,), to which inputs they belong.
            targets: (N,), the output asked of each; None: that of its input.

        Raises:
            InputError: the ``kind`` is a callable that gives something else than a number for each row.
        """
        if outputs.dtype in (torch.float16, torch.bfloat16):
            outputs = outputs.float()
        if targets is None:
            target = self.targets[owner]
            runner_up = self.runner_up[owner]
        else:
            target = targets
            runner_up = self.meaning.runner_up(self.outputs[owner], targets)
        if not callable(self.kind):
            return self.meaning.score(self.kind, outputs, target, runner_up)
        value = self.kind(outputs, target)
        if value.shape != target.shape:
            raise InputError(f"kind: the callable returned shape {tuple(value.shape)}, expected {tuple(target.shape)}")
        return value
