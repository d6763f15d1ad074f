"""Settings: what each type of field takes, and that nonsense is refused by name, whatever class it is given to."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch

import consilience as cs
from consilience import signatures, train
from consilience.attacks.importance import ImportanceAttack
from consilience.combine.aggregations import AGGREGATIONS, Given
from consilience.combine.aggregations import Uniform as UniformMap
from consilience.combine.draws import Draws
from consilience.combine.weights import Minimise
from consilience.errors import InputError
from consilience.explain.options import Options
from consilience.explainers import METHODS, Mixture
from consilience.explainers.gradients import Saliency
from consilience.features.base import Features
from consilience.measures import MEASURES
from consilience.measures.local_models import LocalModels
from consilience.metrics import METRICS, AverageSensitivity, Infidelity
from consilience.metrics.front import Front
from consilience.metrics.objective import Objective
from consilience.model.outputs import Kind
from consilience.perturb.baseline import Baseline
from consilience.perturb.imputation import Imputer
from consilience.perturb.neighbourhoods import Neighbourhood
from consilience.settings import Settings, setting
from consilience.surrogates.lime_maple import Maple
from consilience.surrogates.local_linear import Local


@dataclass(frozen=True)
class Every(Settings):
    whole: int = setting(20, low=1)
    real: float = setting(0.5, above=0, high=2)
    flag: bool = False
    word: str = setting("a", choices=("a", "b"))
    either: Literal["x", "y"] = "x"
    perhaps: float | None = None
    mixed: int | str = "auto"
    several: tuple[float, ...] = (0.1,)


FINE = {
    "whole": (1, 10**9, np.int64(3), torch.tensor(4)),
    "real": (2, 0.1, np.float32(0.5), torch.tensor(1.0)),
    "flag": (True, np.bool_(False)),
    "word": ("b",),
    "either": ("y",),
    "perhaps": (None, 3, 0.1),
    "mixed": ("auto", 3),
    "several": ((), [1, 2], np.array([0.5])),
}
NONSENSE = {
    "whole": (0, -1, 1.5, math.nan, math.inf, 10**30, "3", None, True, [3], torch.ones(2)),
    "real": (0, -1, 3, math.nan, math.inf, -math.inf, "1", None, True, 1j),
    "flag": (1, 0, "yes", None),
    "word": ("c", "", 1, None),
    "either": ("z", None),
    "perhaps": (math.nan, "1", True),
    "mixed": (1.5, math.nan, None, (1,)),
    "several": ("ab", 1.0, (math.nan,), ("a",)),
}


@pytest.mark.parametrize("name", FINE)
def test_what_a_field_takes_is_a_plain_value(name):
    for value in FINE[name]:
        got = getattr(Every(**{name: value}), name)
        assert got == value or list(got) == list(value)
        assert type(got) in (int, float, bool, str, type(None), tuple)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NONSENSE.items() for value in values])
def test_nonsense_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"Every: {name} "):
        Every(**{name: value})


# -- the law over the tables -------------------------------------------------------------------------------------------


def subclasses(base: type) -> list[type]:
    """Every configuration of the package that inherits ``base``."""
    found = []
    for each in base.__subclasses__():
        own = each.__module__.startswith("consilience.") and dataclasses.is_dataclass(each)
        found += ([each] if own else []) + subclasses(each)
    return found


CLASSES: list[type] = list(
    dict.fromkeys(
        [
            *METHODS.values(), *METRICS.values(), *MEASURES.values(), *map(type, AGGREGATIONS.values()), UniformMap, Given,
            Minimise, *subclasses(Features), *subclasses(Neighbourhood), *subclasses(Imputer), Baseline, Draws, Front,
            Objective, Kind, Options, Mixture, Maple, Local, LocalModels, ImportanceAttack, train.PGD, train.WarmUp,
            train.Balanced,
        ]
    )
)  # fmt: skip

NEEDED: dict[tuple[str, str], Any] = {
    ("Alignment", "region"): torch.ones(1, 4, dtype=torch.bool),
    ("Front", "robust"): AverageSensitivity(relative=True),
    ("Front", "faithful"): Infidelity(),
    ("Given", "weights"): [1.0],
    ("ImportanceAttack", "eps"): 0.1,
    ("ImportanceAttack", "k"): 3,
    ("ImportanceAttack", "step_size"): 0.1,
    ("ImportanceAttack", "steps"): 2,
    ("LocalModels", "data"): torch.rand(4, 3),
    ("Minimise", "goal"): Objective(((1.0, Infidelity()),)),
    ("Mixture", "explainers"): (Saliency(),),
    ("Mixture", "weights"): (1.0,),
    ("Objective", "terms"): ((1.0, Infidelity()),),
    ("Parts", "each"): [],
    ("Balanced", "c"): 1.0,
    ("PGD", "eps"): 0.1,
    ("WarmUp", "steps"): 3,
}
"""Of fields that have no default, a value that is fine, so that the others can be tried."""

ODD: dict[str, Any] = {
    "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "-1": -1, "1.5": 1.5, "1e30": 10**30, "x": "x", "None": None,
    "True": True, "an object": object(), "a complex number": 1j, "bytes": b"x", "an array with NaN": torch.tensor([math.nan]),
}  # fmt: skip

FREE = {
    ("Baseline", "tag"),  # whatever names a tensor
    ("Baseline", "tensor"),  # held against the data when it is used, where the message can say which rows
    ("LocalModels", "memory"),
}

ALSO = {
    ("Columns", "categorical", "x"),  # a column's name
    ("LocalModels", "around", "x"),  # one of the choices
    ("Options", "fit_draws", "None"),
    ("Options", "fresh_draws", "None"),
}
"""What is valid although the annotation does not say so."""

SELDOM = {("Options", name) for name in ("baselines", "kwargs", "kind", "methods", "objective", "features", "weights")}
"""Of the entry points; they have a law of their own below."""


def configured(cls: type, **given: Any) -> Any:
    needed = {name: value for (owner, name), value in NEEDED.items() if owner == cls.__name__}
    return cls(**{**needed, **given})


def may_stand(odd: str, annotation: str, rule: Any) -> bool:
    """Whether something odd is a valid value of a field, by its annotation alone."""
    kinds = {part.strip() for part in annotation.split("|")}
    number = bool(kinds & {"int", "float", "AnyBaseline", "AnyImputer", "Size", "Bound"}) or annotation.startswith(
        "tuple[float"
    )
    if odd == "None":
        return "None" in kinds or annotation in ("AnyBaseline", "AnyImputer", "AnyRows")
    if odd == "x":
        return "str" in kinds and not (rule and rule.choices)
    if odd == "True":
        return "bool" in kinds
    if odd == "-1":
        return number and (rule is None or rule.allows(-1))
    if odd in ("1.5", "1e30"):
        whole = "int" in kinds and "float" not in kinds
        return number and not whole and (rule is None or rule.allows(float(ODD[odd])))
    return False


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}")
def test_every_field_of_every_class_refuses_nonsense_by_name(cls):
    assert issubclass(cls, Settings)
    configured(cls)
    for field in dataclasses.fields(cls):
        if (cls.__name__, field.name) in FREE | SELDOM:
            continue
        for odd, value in ODD.items():
            try:
                made = configured(cls, **{field.name: value})
            except InputError as error:
                assert field.name in str(error), (
                    f"{cls.__name__}({field.name}={odd}) is refused without its name: {error}"
                )
                continue
            kept = getattr(made, field.name)
            fine = may_stand(odd, str(field.type), field.metadata.get("rule"))
            fine |= (cls.__name__, field.name, odd) in ALSO
            assert fine, f"{cls.__name__}({field.name}={odd}) is taken, as {kept!r}"


# -- training objectives, which are modules and no dataclasses ---------------------------------------------------------

OBJECTIVES = [
    each for each in vars(train).values() if isinstance(each, type) and issubclass(each, train.TrainingObjective)
]
OPTIONS = inspect.signature(train.TrainingObjective.__init__).parameters
REQUIRED = {"eps": 0.1, "metric": Infidelity(), "explainers": "saliency", "explainer": "saliency", "prior": "gini"}
ALIAS = {"explainers": "method", "explainer": "method"}
REQUIRED["background"] = torch.rand(3, 4)


def arguments(cls: type) -> dict[str, inspect.Parameter]:
    """Every argument of an objective, those that all objectives have too."""
    own = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return {name: given for name, given in {**OPTIONS, **own}.items() if name not in ("self", "common")}


@pytest.mark.parametrize("cls", OBJECTIVES, ids=lambda cls: cls.__name__)
def test_every_argument_of_every_training_objective_refuses_nonsense_by_name(cls):
    if cls in (train.TrainingObjective, train.Regulariser):
        return
    known = arguments(cls)
    needed = {name: value for name, value in REQUIRED.items() if name in known}
    cls(**needed)
    for name, given in known.items():
        for odd, value in ODD.items():
            try:
                cls(**{**needed, name: value})
            except InputError as error:
                said = ALIAS.get(name, name) in str(error) or name in str(error)
                assert said, f"{cls.__name__}({name}={odd}) is refused without its name: {error}"
                continue
            kind = str(given.annotation).replace("Weight", "float").replace("float | Tensor", "Size")
            number = (cls.__name__, name) == ("InsertionDeletion", "baseline") and odd in ("-1", "1.5", "1e30", "None")
            fine = number or may_stand(odd, kind, None)
            assert fine, f"{cls.__name__}({name}={odd}) is taken"


class Classifier(torch.nn.Module):
    """As much of a classifier of transformers as the adapter looks at before it has a text."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(pad_token_id=0)
        self.embedding = torch.nn.Embedding(10, 4)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embedding


class Tokenizer:
    model_max_length = 16
    mask_token_id = 3

    def __call__(self, *text: str) -> None:
        raise NotImplementedError


# -- entry points ------------------------------------------------------------------------------------------------------

torch.manual_seed(0)
NET = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).eval()
X = torch.randn(2, 4)
FEW = {"methods": "saliency,input_x_gradient", "fit_draws": 4, "fresh_draws": 4, "resolved_draws": 0}

ENTRIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "explain": (cs.explain, {"model": NET, "x": X, **FEW}),
    "evaluate": (cs.evaluate, {"model": NET, "data": X, "measures": "gini_sparseness", **FEW}),
    "Consensus": (cs.Consensus, {"model": NET, **FEW}),
    "Evaluator": (cs.Evaluator, {"model": NET, "measures": "gini_sparseness", **FEW}),
    "doctor": (cs.doctor, {"model": NET, "x": X, "methods": "saliency"}),
    "pack": (cs.pack, {"inputs": (torch.rand(2, 3), torch.rand(2, 4))}),
    "segmentation": (cs.segmentation, {"model": torch.nn.Conv2d(3, 2, 1)}),
    "text": (cs.text, {"model": Classifier(), "tokenizer": Tokenizer()}),
    "load": (cs.load, {"path": "nowhere"}),
}
if find_spec("captum"):
    from captum.attr import Saliency as CaptumSaliency

    ENTRIES["captum"] = (cs.captum, {"method": CaptumSaliency})
"""Entry point → (it, arguments with which it works, but for those that have no default)."""

SINGULAR = {
    "methods": "method",
    "measures": "measure",
    "rows": "row",
    "baselines": "baseline",
    "data": "x:",
    "path": "no such file",
}
"""What a message may call an argument."""

VALID = {
    ("seed", "-1"), ("tolerance", "1.5"), ("tolerance", "1e30"), ("baselines", "-1"), ("baselines", "1.5"),
    ("baselines", "1e30"), ("baselines", "x"), ("pooled", "True"),
    ("path", "x"), ("rows", "x"), ("objective", "None"), ("name", "x"), ("layer", "x"),
    ("baseline", "None"), ("max_length", "None"), ("fresh_draws", "None"),
    ("quick", "True"),
}  # fmt: skip
"""What is valid, of all entry points; None, where it is the default, is not tried."""


def options_of(entry: str) -> dict[str, inspect.Parameter]:
    """Every argument of an entry point, with those of ``explain`` where it takes these as further options."""
    own = inspect.signature(ENTRIES[entry][0]).parameters
    more = inspect.signature(cs.explain).parameters if "options" in own else {}
    without = () if entry == "explain" else ("x", "ids", "progress", "target")
    return {**{k: v for k, v in more.items() if k not in without}, **{k: v for k, v in own.items() if k != "options"}}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_argument_of_every_entry_point_refuses_nonsense_by_name(entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, given = ENTRIES[entry]
    for name, parameter in options_of(entry).items():
        for odd, value in ODD.items():
            if value is None and parameter.default is None:
                continue
            try:
                call(**{**given, name: value})
            except InputError as error:
                known = SINGULAR.get(name, name) in str(error).lower() or name in str(error)
                assert known, f"{entry}({name}={odd}) is refused without its name: {error}"
                continue
            assert (name, odd) in VALID, f"{entry}({name}={odd}) is taken"


NAMED_ENTRIES = {
    **{
        name: getattr(cs, name)
        for name in ("explain", "evaluate", "doctor", "load", "text", "pack", "segmentation", "to_shap")
    },
    **{name: getattr(cs, name) for name in ("Consensus", "Evaluator", "Score")},
    **{f"Consensus.{name}": getattr(cs.Consensus, name) for name in ("explain", "attribute", "plan")},
    **{cls.__name__: cls for cls in (*CLASSES, *OBJECTIVES)},
}


@pytest.mark.parametrize("name", NAMED_ENTRIES)
def test_an_argument_that_does_not_exist_is_refused_with_the_nearest_one_that_does(name):
    """Of every entry point and every configuration, whose signatures stay as they are written."""
    entry = NAMED_ENTRIES[name]
    signature = inspect.signature(entry)
    assert not any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in signature.parameters.values())
    said = name.rpartition(".")[2]
    with pytest.raises(cs.InputError, match=rf"^{said}\(\) got an unexpected keyword argument 'xyzzy'") as refused:
        entry(xyzzy=1)
    assert isinstance(refused.value, TypeError)
    by_name = [each for each in signature.parameters.values() if each.kind in signatures.NAMED and each.name != "self"]
    if by_name:
        meant = by_name[-1].name
        with pytest.raises(TypeError, match=f"did you mean .*'{meant}'"):
            entry(**{meant + "_": 1})


def test_options_that_are_handed_on_are_known_beside_an_entry_points_own():
    """The nearest name is looked for among both; a copy, a pickle and a class of one's own keep working."""
    for entry, given, meant in (
        (cs.evaluate, "mesures", "measures"),
        (cs.evaluate, "fresh_draw", "fresh_draws"),
        (cs.Consensus, "method", "methods"),
        (cs.Consensus, "tolerence", "tolerance"),
        (train.IGNorm, "loss", "loss_fn"),
    ):
        with pytest.raises(cs.InputError, match=f"did you mean '{meant}'"):
            entry(**{given: 1})
    with pytest.raises(TypeError, match="known: n_samples, stdev, relative"):
        cs.explainers.SmoothGrad(sigma=1)
    smooth = cs.explainers.SmoothGrad(3)
    assert pickle.loads(pickle.dumps(smooth)) == copy.deepcopy(smooth) == replace(smooth, n_samples=3) == smooth
    assert list(inspect.signature(cs.explainers.SmoothGrad).parameters) == ["n_samples", "stdev", "relative"]

    class Mine(cs.Gaussian):
        def __init__(self, width, **rest):
            super().__init__(width, **rest)

    assert Mine(width=0.1, relative=True).sigma == 0.1
    with pytest.raises(TypeError, match="did you mean 'width'"):
        Mine(widht=0.1)
