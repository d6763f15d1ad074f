"""Whose model it is: lent to one thread at a time, and back as it was, whatever happens."""

from __future__ import annotations

import contextlib
import copy
import functools
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from nets import Small, bound, images
from torch import nn

import consilience as cs
from consilience.explainers import FusionGrad, NoiseGrad, Saliency, Stack
from consilience.model import locks
from consilience.model.copies import duplicate
from consilience.model.locks import held, modules_and_parameters
from consilience.model.owned import modules_of
from consilience.model.random_state import RandomState, forked, seeded
from consilience.model.state import borrowed, intact
from consilience.model.undo import interrupts_held_back, undoing

FEW = {"fit_draws": 2, "fresh_draws": 2, "resolved_draws": 0, "objective": "mean"}


def _move(module, args):
    module.running_mean = module.running_mean + 1e-3


class Busy(nn.Module):
    """Everything that a forward pass can move: statistics, a buffer of its own, a hook, dropout."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(5, 4)
        self.register_buffer("seen", torch.zeros(()))
        self.conv.weight.requires_grad_(False)
        self.norm.eval()
        self.norm.register_forward_pre_hook(_move)
        self.double()

    def forward(self, x):
        self.seen += len(x)
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


def state(model: nn.Module) -> tuple:
    """All that must come back, with values to compare."""
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [id(buffer) for buffer in model.buffers()],
        [module.training for module in model.modules()],
        [(id(p), p.data_ptr(), p.requires_grad, p.grad) for p in model.parameters()],
        [{name: list(vars(m)[name]) for name in vars(m) if name.endswith("_hooks")} for m in model.modules()],
        RandomState.now(),
        torch.backends.cudnn.enabled,
        torch.backends.mha.get_fastpath_enabled(),
    )


def assert_same(before: tuple, after: tuple) -> None:
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert before[1:5] == after[1:5]
    assert before[5].same(after[5])
    assert before[6:] == after[6:]


# -- given back --------------------------------------------------------------------------------------------------------


def test_everything_a_forward_pass_moves_comes_back():
    model = Busy()
    before = state(model)
    one = cs.explain(model, images(2), 1, methods=["saliency", "noisegrad", "guided_backprop", "grad_cam"], **FEW)
    assert_same(before, state(model))
    two = cs.explain(model, images(2), 1, methods=["saliency", "noisegrad", "guided_backprop", "grad_cam"], **FEW)
    assert torch.equal(one.maps, two.maps) and not one.failed
    assert_same(before, state(model))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_lent_model_comes_back_after_any_error(error):
    model = Busy()
    before = state(model)
    with pytest.raises(error), borrowed(model, freeze=True):
        assert not any(m.training for m in model.modules()) and not any(p.requires_grad for p in model.parameters())
        assert not torch.backends.mha.get_fastpath_enabled()
        model(images(2))
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        model.head.register_forward_hook(lambda *_: None)
        raise error
    assert_same(before, state(model))


def test_nested_borrowings_undo_in_turn():
    model = Busy()
    before = state(model)
    with borrowed(model, freeze=False):
        inner = state(model)
        with borrowed(model, freeze=True), borrowed(model.head, freeze=True):
            assert not model.head.weight.requires_grad
        assert_same(inner, state(model))
        assert model.head.weight.requires_grad and not model.training
    assert_same(before, state(model))


def test_what_old_style_pruning_computes_keeps_its_graph():
    from torch.nn.utils import prune

    model = nn.Sequential(nn.Linear(4, 3))
    prune.random_unstructured(model[0], "weight", 0.5)
    weight = model[0].weight
    cs.explain(model, torch.randn(2, 4), 1, methods=["saliency"], **FEW)
    assert model[0].weight is weight and weight.grad_fn is not None


def test_global_generators_are_seeded_inside_and_back_outside():
    def draw():
        return float(torch.rand(()) + np.random.rand() + random.random())  # noqa: NPY002

    before = RandomState.now()
    with forked(3):
        first = draw()
        with forked():
            draw()
        second = draw()
    with forked(3):
        assert draw() == first and draw() == second
    assert seeded(draw, 3) == (first, True) and seeded(lambda: 1, 3) == (1, False)
    assert before.same(RandomState.now())


# -- interrupts --------------------------------------------------------------------------------------------------------


def test_every_step_is_undone_last_first_though_one_fails():
    done = []

    def fails():
        raise KeyError

    with pytest.raises(KeyError), undoing(lambda: done.append("first"), fails, lambda: done.append("last")):
        pass
    assert set(done) == {"first", "last"} and done[0] == "last"


def test_an_interrupt_during_clean_up_waits_for_its_end():
    import signal

    done = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            with interrupts_held_back():
                signal.raise_signal(signal.SIGINT)
                done.append(1)
            done.append(2)
        assert done == [1] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


# -- threads -----------------------------------------------------------------------------------------------------------


def test_two_threads_never_hold_a_shared_submodule_at_once():
    shared = nn.Linear(2, 2)
    one, two = nn.Sequential(shared), nn.Sequential(nn.ReLU(), shared)
    inside, most = [], []

    def use(model):
        for _ in range(50):
            with borrowed(model, freeze=True):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, [one, two, one, two]))
    assert max(most) == 1 and shared.training and shared.weight.requires_grad


def test_models_that_share_nothing_run_at_the_same_time():
    meet = threading.Barrier(2, timeout=20)

    class Meeting(nn.Linear):
        def forward(self, x):
            meet.wait()
            return super().forward(x)

    def use(model):
        with borrowed(model, freeze=True), torch.no_grad():
            model(torch.zeros(1, 2))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(use, [Meeting(2, 2), Meeting(2, 2)]))


def test_two_threads_that_want_each_others_model_do_not_wait_for_ever():
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    meet = threading.Barrier(2, timeout=20)

    def nested(first, second):
        with borrowed(first, freeze=True):
            meet.wait()
            with borrowed(second, freeze=True):
                return "done"

    def use(models):
        try:
            return nested(*models)
        except cs.InputError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(use, [(one, two), (two, one)]))
    assert said[0] == "done" and "deepcopy" in said[1]
    with borrowed(one, freeze=True), borrowed(two, freeze=True):
        assert not one.training
    assert one.training and two.training


def test_threads_are_served_in_the_order_in_which_they_come():
    model, order = nn.Linear(2, 2), []
    modules, _ = modules_and_parameters([model])
    ready = threading.Event()

    def wait(name):
        ready.wait(20)
        with held(modules):
            order.append(name)

    with held(modules):
        thread = threading.Thread(target=wait, args=("second",))
        thread.start()
        ready.set()
        while not __import__("consilience.model.locks", fromlist=["_"])._waiting:
            pass
    with held(modules):
        order.append("third")
    thread.join()
    assert order == ["second", "third"]


def test_four_threads_on_one_model_give_what_one_gives():
    model, batches = Busy(), [images(n, seed=n) for n in (1, 2, 3, 1, 2, 3)]
    before = state(model)

    def job(x):
        return cs.explain(model, x, 1, methods=["saliency", "guided_backprop", "grad_cam", "noisegrad"], **FEW).maps

    alone = [job(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(job, batches))
    for one, other in zip(alone, at_once, strict=True):
        torch.testing.assert_close(one, other)
    assert_same(before, state(model))


@pytest.mark.parametrize("explainer", [NoiseGrad(4), FusionGrad(2, 2)])
def test_a_thread_that_only_predicts_sees_its_own_weights(explainer):
    model, x = Small(), images(2)
    expected, wrong, stop = model(x).detach(), [], threading.Event()

    def predict():
        while not stop.is_set():
            with torch.no_grad():
                wrong.append(not torch.equal(model(x), expected))

    thread = threading.Thread(target=predict)
    thread.start()
    for _ in range(5):
        Stack([explainer]).attribute(*bound(model, x))
    stop.set()
    thread.join()
    assert wrong and not any(wrong)


def test_a_method_that_explains_the_same_model_may():
    model = Small()

    def nested(model, inputs, target):
        return cs.explain(model, inputs, target, methods=["saliency"], **FEW)["saliency"][:, None].expand_as(inputs)

    r = cs.explain(model, images(2), 1, methods=[nested, "saliency"], **FEW)
    assert not r.failed
    torch.testing.assert_close(r["nested"], r["saliency"])


# -- functions around a module -----------------------------------------------------------------------------------------


def wrapped_in_global(x):
    return GLOBAL(x)


GLOBAL = nn.Linear(3, 2)


class Holder:
    def __init__(self, model):
        self.parts = {"models": [model]}

    def __call__(self, x):
        return self.parts["models"][0](x)


class Slotted:
    __slots__ = ("model",)

    def __init__(self, model):
        self.model = model

    def predict(self, x):
        return self.model(x)


def wraps(model):
    def inner(x):
        return model(x)

    return {
        "module": model,
        "bound method": model.forward,
        "partial": functools.partial(model),
        "closure": inner,
        "closure of a closure": lambda x: inner(x),
        "default": lambda x, m=model: m(x),
        "object": Holder(model),
        "method of an object": Slotted(model).predict,
        "cached": functools.lru_cache(inner),
    }


@pytest.mark.parametrize("kind", wraps(nn.Identity()))
def test_the_module_behind_a_function_is_found(kind):
    model = Busy()
    call = wraps(model)[kind]
    assert modules_of(call) == [model]
    before = state(model)
    r = cs.explain(call, images(2), 1, methods=["saliency"], **FEW)
    assert_same(before, state(model))
    model.eval()
    torch.testing.assert_close(r["saliency"], cs.explain(model, images(2), 1, methods=["saliency"], **FEW)["saliency"])
    assert not any("random" in said for said in r.warnings)


def test_the_module_in_a_global_is_found():
    assert modules_of(wrapped_in_global) == [GLOBAL]
    assert modules_of(lambda x: wrapped_in_global(x)) == [GLOBAL]
    assert modules_of(torch.relu) == [] and modules_of(lambda x: torch.relu(x)) == []


# -- copies ------------------------------------------------------------------------------------------------------------


def test_a_duplicate_has_weights_of_its_own():
    model = torch.nn.utils.weight_norm(nn.Linear(3, 2))
    model(torch.ones(1, 3))  # now its weight is computed, and cannot be deep-copied
    other = duplicate(model)
    x = torch.randn(4, 3)
    torch.testing.assert_close(other(x), model(x))
    with torch.no_grad():
        other.weight_g.mul_(2)
    assert not torch.allclose(other(x), model(x))

    class Locked(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.lock = threading.Lock()

    with pytest.raises(cs.InputError, match=r"Locked cannot be copied \(TypeError"):
        duplicate(Locked())


def test_complex_weights_are_perturbed_in_both_parts():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((3, 2), 1 + 1j, dtype=torch.complex128))

        def forward(self, x):
            return (x.to(torch.complex128) @ self.weight).abs()

    score, points = bound(Complex(), torch.ones(1, 3, dtype=torch.float64))
    found = Stack([NoiseGrad(1, stdev=0.5)]).attribute(score, points)
    assert not torch.allclose(found, Stack([Saliency()]).attribute(score, points))


# -- models of every kind ----------------------------------------------------------------------------------------------


def test_lazy_and_meta_models_are_refused():
    with pytest.raises(cs.InputError, match="lazy"):
        cs.explain(nn.LazyLinear(2), torch.ones(1, 3), 0, methods=["saliency"])
    with pytest.raises(cs.InputError, match="meta"):
        cs.explain(nn.Linear(3, 2, device="meta"), torch.ones(1, 3), 0, methods=["saliency"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["script", "frozen", "trace", "compiled"])
def test_scripted_and_compiled_models_explain_like_their_source(form):
    source = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    model = {
        "script": lambda: torch.jit.script(source),
        "frozen": lambda: torch.jit.freeze(torch.jit.script(copy.deepcopy(source).eval())),
        "trace": lambda: torch.jit.trace(copy.deepcopy(source).eval(), torch.ones(1, 5).double()),
        "compiled": lambda: torch.compile(source, backend="eager"),
    }[form]()
    x = torch.randn(2, 5, dtype=torch.float64)
    r = cs.explain(model, x, 1, methods=["saliency", "feature_ablation"], **FEW)
    expected = cs.explain(source, x, 1, methods=["saliency", "feature_ablation"], **FEW)
    torch.testing.assert_close(r.maps, expected.maps)
    assert form in ("frozen", "trace") or model.training


def test_others_code_may_do_anything_to_the_model():
    model = Busy()
    before = state(model)
    with intact(model):
        model.train()
        model.extra = torch.ones(3)
        model.head.weight.data = torch.zeros_like(model.head.weight)
        model(images(2)).sum().backward()
        model.head.register_forward_hook(lambda *_: None)
    after = state(model)
    assert_same((*before[:5], after[5], *before[6:]), after)
    assert not hasattr(model, "extra")


# -- methods that fail -------------------------------------------------------------------------------------------------


def picky(error):
    def call(model, inputs, target):
        if bool((inputs[:, 0, 0, 0] > 1).any()):
            raise error
        return inputs

    return call


@pytest.mark.parametrize(
    "error", [KeyError("no"), IndexError(), TypeError("bad"), NotImplementedError(), RuntimeError("r")]
)
def test_a_method_that_fails_later_is_nan_there_with_a_reason_and_stops_no_other(error):
    x = images(4)
    x[:, 0, 0, 0] = torch.tensor([0.0, 5.0, 0.0, 5.0])
    options = {"methods": [picky(error), "saliency"], "fit_draws": 2, "fresh_draws": 2, "resolved_draws": 0}
    r = cs.explain(Small(), x, 1, objective="robust", sign="keep", scale="none", **options)
    failed = r["call"].isnan().flatten(1).all(1)
    assert failed.tolist() == [False, True, False, True] and r["saliency"].isfinite().all()
    torch.testing.assert_close(r["call"][0], x[0].sum(0))  # not spoilt by the others in its batch
    assert any(said.startswith("call failed at") for said in r.warnings)
    assert r.weights[1].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("error", [KeyError("no"), IndexError(), TypeError("bad"), NotImplementedError()])
def test_a_method_that_fails_in_the_trial_is_a_named_row(error):
    class Broken(Saliency):
        name = "broken"

        def fold(self, state, cloud, values):
            raise error

    r = cs.explain(Small(), images(2), 1, methods=["smoothgrad", Broken()], **FEW)
    assert type(error).__name__ in r.failed["broken"]
    assert r["smoothgrad"].isfinite().all()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), OSError(28, "No space left on device")])
def test_what_concerns_the_whole_run_stops_it(error):
    class Broken(Saliency):
        name = "broken"

        def fold(self, state, cloud, values):
            raise error

    with pytest.raises(type(error)):
        cs.explain(Small(), images(2), 1, methods=["smoothgrad", Broken()], **FEW)


# -- rows that depend on their batch -----------------------------------------------------------------------------------


class Forgotten(nn.Module):
    """Attention over the batch, since batch_first was forgotten."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 3)
        self.double()

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class Mixing(nn.Module):
    """A linear model, with something of the batch added to each row's outputs."""

    def __init__(self, how):
        super().__init__()
        self.how, self.linear = how, nn.Linear(8, 3).double()

    def forward(self, x):
        outputs = self.linear(x.mean(1))
        if self.how == "batch statistics":
            return outputs - outputs.mean(0)
        if self.how == "neighbour":
            return outputs + outputs.roll(1, 0)
        if self.how == "place":
            return outputs * torch.arange(1, len(x) + 1)[:, None]
        if self.how == "dropout":
            return nn.functional.dropout(outputs, 0.5, training=True)
        if self.how == "NumPy's generator":
            return outputs + torch.from_numpy(np.random.default_rng().normal(size=(len(x), 3)))
        return outputs


SAID = {
    "batch statistics": "depend on what else is in its batch",
    "neighbour": "depend on what else is in its batch",
    "place": "depend on what else is in its batch",
    "dropout": "drawn at random",
    "NumPy's generator": "cannot be seeded",
    "nothing": None,
}
SEQUENCES = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("how", SAID)
def test_what_rows_depend_on_is_said_by_name(how, count):
    r = cs.explain(Mixing(how), SEQUENCES[:count], 1, methods=["saliency"], **FEW)
    said = [warning for warning in r.warnings if "the model's outputs" in warning]
    assert [SAID[how]] == [SAID[how] for warning in said if SAID[how] in warning] if SAID[how] else not said


@pytest.mark.parametrize(
    "model", [Forgotten(), *(Mixing(how) for how in list(SAID)[:4])], ids=["batch_first", *list(SAID)[:4]]
)
def test_rows_that_depend_on_their_batch_are_run_alone(model):
    """So that an input's maps are the same in any company; what needs two rows at once is refused by name."""
    options = {
        "methods": ["saliency", "smoothgrad", "feature_ablation", "deeplift"],
        "sign": "keep",
        "scale": "none",
        **FEW,
    }
    whole = cs.explain(model, SEQUENCES, 1, **options)
    for i in range(3):
        alone = cs.explain(model, SEQUENCES[i : i + 1], 1, ids=[i], **options)
        for method in options["methods"][:3]:
            torch.testing.assert_close(whole[method][i], alone[method][0])
    assert "in one batch" in whole.failed["deeplift"]


def test_the_check_costs_three_passes_of_two_rows():
    class Counting(Small):
        rows = ()

        def forward(self, x):
            self.rows = (*self.rows, len(x))
            return super().forward(x)

    model = Counting()
    score = cs.Score(model, 1).at(images(3), check_rows=True)
    assert model.rows[:3] == (2, 2, 2) and score.counts.forward == sum(model.rows)
    assert not score.row_warnings
    assert cs.Score(Small().float(), 1).at(images(3).float(), check_rows=True).dependence.value == "nothing"


def test_padded_transformers_are_explained_by_the_graph_that_is_differentiated():
    """PyTorch's fast path sets padded places to zero; the mean over all places sees the difference."""

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=True), nn.Linear(8, 3)

        def forward(self, x):
            mask = torch.zeros(x.shape[:2], dtype=torch.bool)
            mask[:, 3:] = True
            return self.head(self.encoder(x, src_key_padding_mask=mask).mean(1))

    torch.manual_seed(0)
    model, x = Padded().eval(), SEQUENCES.float()
    score, points = bound(model, x)
    with torch.enable_grad():
        differentiated = model(x.clone().requires_grad_())[:, 1].detach()
    torch.testing.assert_close(score.clean, differentiated)
    torch.testing.assert_close(
        score(points.x, points.owner), score.evaluate(points.x, points.owner, gradient=True).score
    )
    assert torch.backends.mha.get_fastpath_enabled()


# -- interrupted anywhere ----------------------------------------------------------------------------------------------


class Nth(Exception):
    """Raised at the n-th call."""


def interrupt_nth(monkeypatch, owner, name, n, error):
    """Let the n-th call of ``owner.name`` raise, after it has done its work; n counts from 0."""
    original, calls = getattr(owner, name), [0]

    def call(*args, **kwargs):
        result = original(*args, **kwargs)
        calls[0] += 1
        if calls[0] == n + 1:
            raise error
        return result

    monkeypatch.setattr(owner, name, call)
    return calls


PLACES = [
    (nn.Module, "register_forward_hook"),
    (nn.Module, "register_forward_pre_hook"),
    (torch.utils.hooks.RemovableHandle, "remove"),
    (nn.functional, "linear"),
    (torch.autograd, "grad"),
    (torch.backends.mha, "set_fastpath_enabled"),
]
EVERY = ["saliency", "guided_backprop", "deeplift", "grad_cam", "noisegrad"]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[1])
@pytest.mark.parametrize("method", EVERY)
def test_an_interrupt_anywhere_leaves_no_trace(place, method, monkeypatch):
    """Ctrl-C at the n-th registration of a hook, removal, forward or backward pass, for the first dozens of n."""
    from consilience.explainers import resolve

    model = Busy()
    x = images(2)
    score, points = bound(model, x)
    before = state(model)
    stack = Stack(resolve(method))
    for n in range(0, 30, 3):
        with monkeypatch.context() as patch:
            calls = interrupt_nth(patch, *place, n, KeyboardInterrupt)
            score._layers.clear()
            try:
                stack.attribute(score, points)
            except KeyboardInterrupt:
                pass
            done = calls[0] <= n
        assert_same(before, state(model))
        if done:
            break


@pytest.mark.parametrize("rule, step", [(None, 1), ("guided", 7), pytest.param("guided", 1, marks=pytest.mark.slow)])
def test_ctrl_c_at_any_line_of_ours_leaves_no_trace(rule, step):
    """A real signal at every ``step``-th line of the model's room: modes, flags, hooks, generators and locks come back."""
    import os
    import signal

    model = Busy()
    x = images(1)
    score, points = bound(model, x)
    before = state(model)
    room = f"{os.sep}consilience{os.sep}model{os.sep}"

    def run(n):
        count = 0

        def trace(frame, event, _):
            nonlocal count
            if room not in frame.f_code.co_filename:
                return None
            if event == "line":
                count += 1
                if count == n:
                    where.append((frame.f_code.co_filename, frame.f_lineno))
                    signal.raise_signal(signal.SIGINT)
            return trace

        sys.settrace(trace)
        try:
            score.evaluate(points.x, points.owner, gradient=True, rule=rule)
        finally:
            sys.settrace(None)
        return count

    where = []
    lines = run(0)
    assert lines > 100
    lost = []
    for n in range(1, lines + 1, step):
        with contextlib.suppress(KeyboardInterrupt):
            run(n)
        try:
            assert_same(before, state(model))
            assert not locks._holds and not locks._waiting
        except AssertionError:
            lost.append(where[-1])
    assert not lost


def interrupted_at_call(n, run):
    """``run()``, with a KeyboardInterrupt at the n-th call of a function of ours or of contextlib's; how many calls there were.

    Python raises a pending interrupt where a function begins or a generator goes on.
    """
    calls = 0

    def profile(frame, event, _):
        nonlocal calls
        code = frame.f_code
        ours = "consilience" in code.co_filename or code.co_filename.endswith("contextlib.py")
        # Not within a generator expression, whose interrupt Python may only report.
        if event == "call" and ours and code.co_name != "<genexpr>":
            calls += 1
            if calls == n:
                raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        run()
    except KeyboardInterrupt:  # not contextlib.suppress, whose own end would be counted too
        pass
    finally:
        sys.setprofile(None)
    return calls


def test_every_step_is_undone_wherever_one_interrupt_comes():
    """Also where it comes just before the clean-up begins."""
    done = set()

    def use():
        with undoing(lambda: done.add("first step"), lambda: done.add("second step")):
            done.add("changed")

    lost = []
    count = interrupted_at_call(0, use)
    for n in range(1, count + 1):
        done.clear()
        interrupted_at_call(n, use)
        if "changed" in done and len(done) < 3:
            lost.append(n)
    assert count > 10 and not lost


REGULARISERS = {
    "penalty": lambda: cs.train.Penalty(
        cs.AverageSensitivity() + cs.Infidelity(), "input_x_gradient", draws=2, max_batch=3
    ),
    "insertion_deletion": lambda: cs.train.InsertionDeletion("input_x_gradient", 2, max_batch=4),
    "fidelity_1d": lambda: cs.train.Fidelity1D(0.1, max_batch=9),
    "ig_cosine": lambda: cs.train.IGCosine(0.05, 2, points=2, max_batch=3),
    "gradient_alignment": lambda: cs.train.LocalGradientAlignment(0.05, max_batch=3),
    "stability": lambda: cs.train.Stability(0.1, weight=cs.train.Balanced(0.1), max_batch=3),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", REGULARISERS)
def test_a_regulariser_leaves_the_model_as_it_was_interrupted_or_not(name, training):
    """Modes, flags, buffers that move in either mode, hooks and generators come back; no gradient is left."""
    x, y = images(2).double(), torch.tensor([0, 1])

    def call(n):
        model = Busy().train(training)
        before = state(model)
        count = interrupted_at_call(n, lambda: REGULARISERS[name]()(model, x, y))
        assert_same(before, state(model))
        assert not locks._holds and not locks._waiting
        return count

    count = call(0)
    assert count > 100
    for n in range(1, count + 1, count // 20):
        call(n)
