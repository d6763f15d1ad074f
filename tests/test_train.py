"""Laws of every training objective (the table with its slow twins is train_twins.py), and robust attributions' own cases."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as nnf
from nets import Small, images
from torch import nn
from train_twins import IDS, TABLE, X, Y, make, slope

from consilience import train
from consilience.errors import InputError

rows = pytest.mark.parametrize("name", TABLE)


def gradients(loss, model):
    return torch.autograd.grad(loss.total, list(model.parameters()), allow_unused=True)


def close(a, b, **tolerance):
    torch.testing.assert_close(a.total, b.total, **tolerance)
    torch.testing.assert_close(a.parts, b.parts, **tolerance)


def test_the_table_is_complete():
    listed = {getattr(train, name) for name in train.__all__}
    objectives = {c for c in listed if isinstance(c, type) and issubclass(c, train.TrainingObjective)}
    assert objectives - {train.TrainingObjective, train.Regulariser} == {row[0] for row in TABLE.values()}


@rows
def test_equals_its_slow_twin(name):
    model, objective, twin = Small(nn.Softplus), make(name), TABLE[name][2]
    objective.step += 3
    loss = objective(model, X, Y, IDS)
    if name == "gini":
        found = [twin(model, X, Y, IDS, 3)]
    else:
        found = [twin(model, *one, 3) for one in zip(X, Y, IDS, strict=True)]
    task, part = ([one[which] for one in found if one[which] is not None] for which in (0, 1))
    total = sum(t / len(task) for t in task) + 0.7 * sum(p / len(part) for p in part)
    torch.testing.assert_close(loss.total, total)
    assert objective.includes_task == bool(task) == ("task" in loss.parts)
    wanted = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    for got, right in zip(gradients(loss, model), wanted, strict=True):
        assert (got is None or not got.any()) if right is None else torch.allclose(got, right, rtol=1e-7, atol=1e-10)
    assert loss.parts.keys() <= {"task", "ig_norm", getattr(objective, "name", ""), "weight", "defined"}


@rows
@pytest.mark.parametrize("size", [4, 30])
def test_chunks_do_not_matter_and_bound_the_rows(name, size):
    model, seen = Small(nn.Softplus), []
    whole = make(name, max_batch=10**6)(model, X, Y, IDS)
    with model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0]))):
        objective = make(name, max_batch=size)
        parts = objective(model, X, Y, IDS)
    if objective.includes_task:
        assert seen.pop() == 3  # the task pass is the caller's batch
    assert max(seen, default=0) <= (max(size, 9) if name == "insertion_deletion" else size)  # 9: one input's masks
    close(whole, parts)
    for a, b in zip(gradients(whole, model), gradients(parts, model), strict=True):
        assert (a is None or not a.any()) if b is None else torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@rows
def test_order_does_not_matter_and_sums_are_sums(name):
    model, back = Small(nn.Softplus), torch.tensor([2, 0, 1])
    mean = make(name)(model, X, Y, IDS)
    close(mean, make(name)(model, X[back], Y[back], IDS[back]))
    torch.testing.assert_close(3 * mean.total, make(name, reduction="sum")(model, X, Y, IDS).total)


@rows
def test_resumes_exactly(name):
    model, objective, again = (
        Small(nn.Softplus),
        make(name, weight=train.Balanced(0.1)),
        make(name, weight=train.Balanced(0.1)),
    )
    first = objective(model, X, Y)
    again.load_state_dict(copy.deepcopy(objective.state_dict()))
    with torch.no_grad():
        model.head.weight += 0.1  # so that a ratio taken anew would differ
    second = objective(model, X, Y)
    assert torch.equal(again(model, X, Y).total, second.total) and int(again.step) == 2
    if name not in ("natural", "madry", "input_gradient"):  # the others draw
        part = getattr(objective, "name", "ig_norm")
        assert not torch.equal(first.parts[part], second.parts[part])
    again.eval()
    once, twice = again(model, X, Y), again(model, X, Y)
    assert torch.equal(once.total, twice.total) and int(again.step) == 2


BOTH, EVAL = {True, False}, {False}
MODES = {
    "natural": set(), "madry": EVAL, "sensitivity": EVAL, "infidelity": EVAL, "ig_norm": BOTH, "ig_sum_norm": BOTH,
    "ig_cosine": BOTH, "insertion_deletion": BOTH,
}  # fmt: skip


class Mixed(nn.Module):
    """Batch normalisation, dropout and parts in different modes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Dropout(0.3), nn.Flatten())
        self.head = nn.Linear(144, 4)
        self.frozen = nn.BatchNorm1d(4).eval()
        self.head.bias.requires_grad_(False)

    def forward(self, x):
        return self.frozen(self.head(self.body(x)))


def mixed(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Mixed()
    model.frozen.eval()
    return model.double()


@rows
def test_leaves_the_model_and_the_random_state_alone(name):
    """Buffers and the random state end where one task pass takes them, or where they were if there is none."""
    model, twin, objective = mixed(), mixed(), make(name)
    start, x = torch.random.get_rng_state(), X.clone()
    modes, seen = [m.training for m in model.modules()], []
    with model.register_forward_pre_hook(lambda module, args: seen.append((module.training, args[0].detach()))):
        objective(model, x, Y, IDS).total.backward()
    assert modes == [m.training for m in model.modules()] and torch.equal(x, X)
    assert not model.head.bias.requires_grad and model.head.bias.grad is None and model.head.weight.grad is not None
    after = torch.random.get_rng_state()
    torch.random.set_rng_state(start)
    if objective.includes_task:
        twin(seen.pop()[1])  # the task pass comes last
    assert torch.equal(after, torch.random.get_rng_state())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[key], msg=key)
    # Attacks and explanations are of the model as it is used, in eval mode; every other evaluation is in the caller's.
    assert {training for training, _ in seen} == MODES.get(name, {True})


@rows
def test_evaluates_without_gradients(name):
    model, objective = Small(nn.Softplus), make(name).eval()
    loss = objective(model, X, Y, IDS)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            again = objective(model, X, Y, IDS)
            small = make(name, max_batch=4).eval()(model, X, Y, IDS)
        assert not again.total.requires_grad
        close(loss, again)
        close(loss, small)


@rows
def test_works_under_autocast(name):
    model, x = Small(nn.Softplus).float(), X.float()
    for size in (10**6, 12):
        full = make(name, max_batch=size)(model, x, Y, IDS)
        with torch.autocast("cpu", torch.bfloat16):
            half = make(name, max_batch=size)(model, x, Y, IDS)
        assert half.total.dtype == torch.float32
        # The attack may end elsewhere, and deep differences of bfloat16 outputs are coarse: the size and the sign.
        found, right = (
            torch.cat([g.flatten() for g in gradients(loss, model) if g is not None]) for loss in (half, full)
        )
        assert found.isfinite().all() and nnf.cosine_similarity(found, right, 0) > 0.9, name


@rows
def test_compiled_models_are_used_or_refused(name):
    objective, model, inplace = make(name), Small(nn.Softplus), Small(nn.Softplus)
    compiled = torch.compile(Small(nn.Softplus), backend="eager")
    inplace.compile(backend="eager")
    for given in (compiled, nn.Sequential(compiled), inplace):
        if objective.second_order:
            with pytest.raises(InputError, match="compiled, and .* differentiates twice"):
                objective(given, X, Y, IDS)
    if not objective.second_order:
        torch.testing.assert_close(make(name)(compiled, X, Y, IDS).total, objective(model, X, Y, IDS).total)


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@rows
def test_works_in_distributed_data_parallel(name, group):
    model = mixed()
    parallel = nn.parallel.DistributedDataParallel(mixed())
    objective, other = make(name, max_batch=7), make(name, max_batch=7)
    for _ in range(2):
        totals = []
        for loss, given in ((objective, model), (other, parallel)):
            with torch.random.fork_rng():
                total = loss(given, X, Y, IDS).total
                # One pass through the wrapper, as it wants: the objective's own, or that of the caller's loss.
                totals.append(total if loss.includes_task else total + given(X).square().sum())
        for total in totals:
            total.backward()
    for p, q in zip(model.parameters(), parallel.module.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


# -- robust attributions: degenerate cases and closed forms (arXiv 1905.09957, section 4) ---------------------------------


def evaluated(objective, model):
    loss = objective(model, X, Y, IDS)
    return loss.total, gradients(loss, model)


def test_without_a_weight_they_are_adversarial_and_natural_training():
    model = Small(nn.Softplus)
    for zero, plain in (("ig_sum_norm", "madry"), ("ig_norm", "natural")):
        (a, da), (b, db) = (evaluated(make(n, weight=0.0), model) for n in (zero, plain))
        assert torch.equal(a, b) and all(torch.equal(p, q) for p, q in zip(da, db, strict=True))
    # No shortcut: the whole attack on ℓ + β‖IG‖ walks Madry's path as β vanishes.
    (a, da), (b, db) = (
        evaluated(make("ig_sum_norm", weight=1e-14), model),
        evaluated(make("madry"), model),
    )
    torch.testing.assert_close([a, *da], [b, *db], rtol=1e-10, atol=1e-12)


def test_with_the_sum_as_size_they_interpolate_natural_and_adversarial_training():
    """ΣIG = ℓ(x') − ℓ(x), up to the error of m points: (1 − λ) ℓ(x) + λ ℓ(x'), and (1 + β) ℓ(x') − β ℓ(x)."""
    model, seen = Small(nn.Softplus), []
    losses = lambda x: nnf.cross_entropy(model(x), Y)  # noqa: E731
    for name, parts in (("ig_norm", lambda near: (0.7, 0.3)), ("ig_sum_norm", lambda near: (-0.3, 1.3))):
        objective = make(name, weight=0.3, size="sum", points=400)
        objective.attack = Recorder(objective.attack, seen)
        total = objective(model, X, Y, IDS).total
        here, there = parts(seen[-1])
        torch.testing.assert_close(total, here * losses(X) + there * losses(seen[-1]), rtol=3e-3, atol=0)


class Recorder:
    def __init__(self, attack, seen):
        self.attack, self.seen = attack, seen

    def start(self, *args):
        return self.attack.start(*args)

    def ascend(self, *args):
        self.seen.append(self.attack.ascend(*args))
        return self.seen[-1]


@pytest.mark.parametrize("name", ["ig_norm", "ig_sum_norm"])
def test_one_linear_layer_has_closed_forms(name):
    """g(z) = log(1 + eᶻ), z = −y⟨w, x⟩; the bounds keep the attack on the side where it cannot stop at a wrong corner."""
    w, y = torch.tensor([[0.5, -2.0, 0.3]]).double(), torch.tensor([1.0, 0.0])
    x = torch.tensor([[0.2, -0.1, 0.4], [1.0, 0.3, -0.6]]).double()
    model = nn.Linear(3, 1, bias=False).double()
    model.weight.data = w
    worse = -(2 * y[:, None] - 1) * w.sign()
    bounds = torch.where(worse > 0, x, -torch.inf), torch.where(worse < 0, x, torch.inf)
    m, eps, weight = 7, 0.2, 0.4
    z, full = -(2 * y - 1) * (x @ w[0]), eps * w.abs().sum()
    g = nnf.softplus
    part = full * sum(torch.sigmoid(z + k / m * full) for k in range(1, m + 1)) / m
    wanted = (g(z) if name == "ig_norm" else g(z + full)) + weight * part
    objective = TABLE[name][0](eps, 3, eps, bounds, points=m, weight=weight, loss_fn=train.logistic)
    torch.testing.assert_close(objective(model, x, y).total, wanted.mean())
    objective = TABLE[name][0](eps, 3, eps, bounds, points=1000, weight=weight, loss_fn=train.logistic)
    ends = (1 - weight, weight) if name == "ig_norm" else (-weight, 1 + weight)
    torch.testing.assert_close(
        objective(model, x, y).total, (ends[0] * g(z) + ends[1] * g(z + full)).mean(), rtol=1e-3, atol=0
    )


def test_the_attack_climbs_and_stays_in_its_box():
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.5, 0.25, 1.0])
    eps, (low, high) = train.normalised(0.1, std), train.bounds_of(mean, std)
    x = (torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    model, seen = Small(nn.Softplus), []
    for steps in (0, 8):
        objective = train.AdversarialTraining(eps, steps, bounds=(low, high))
        objective.attack = Recorder(objective.attack, seen)
        seen.append(objective(model, x.double(), Y).total)
    start, before, near, after = seen
    assert after > before + 0.1
    for there in (start, near):
        assert ((there - x).abs() <= eps + 1e-6).all() and (there >= low - 1e-6).all() and (there <= high + 1e-6).all()
    assert ((near - x).abs() / eps).amax((0, 2, 3)).min() > 0.99


class Sum(Small):
    def forward(self, x):
        return super().forward(x).sum()


def test_piecewise_linear_networks_have_no_curvature_to_attack():
    """‖∇f‖² of the output does not depend on x between kinks; with softplus it does (docs/training.md)."""
    for act, bends in ((nn.ReLU, False), (nn.Softplus, True)):
        x = X.clone().requires_grad_()
        size = slope(Sum(act), x).pow(2).sum()
        assert bool(torch.autograd.grad(size, x, allow_unused=True, materialize_grads=True)[0].any()) == bends


def on_a_rank(rank, world, folder):
    """Both halves of four inputs; this rank's gradients of every objective, averaged by DistributedDataParallel."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    x, y, ids = four()
    mine, found = slice(2 * rank, 2 * rank + 2), {}
    for name in TABLE:
        parallel = nn.parallel.DistributedDataParallel(Small(nn.Softplus))
        objective = make(name, max_batch=7, weight=train.Balanced(0.3))
        total = objective(parallel, x[mine], y[mine], ids[mine]).total
        if not objective.includes_task:
            total = total + nnf.cross_entropy(parallel(x[mine]), y[mine])
        total.backward()
        found[name] = objective.ratio, [p.grad for p in parallel.module.parameters()]
    torch.save(found, f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def four():
    return images(4, seed=6), torch.tensor([1, 3, 0, 2]), torch.tensor([9, 2, 30, 5])


@pytest.mark.slow
def test_two_ranks_take_the_step_of_one(tmp_path):
    """Halves of a batch on two processes give the gradients, and ExpO's weight, of the whole batch on one."""
    torch.multiprocessing.spawn(on_a_rank, (2, str(tmp_path)), 2)
    ranks, (x, y, ids) = [torch.load(tmp_path / str(rank)) for rank in (0, 1)], four()
    for name in TABLE:
        if name == "gini":  # couples the inputs of a batch
            continue
        model, objective = Small(nn.Softplus), make(name, weight=train.Balanced(0.3))
        total = objective(model, x, y, ids).total
        if not objective.includes_task:
            total = total + nnf.cross_entropy(model(x), y)
        total.backward()
        for ratio, grads in (rank[name] for rank in ranks):
            torch.testing.assert_close(ratio, objective.ratio, equal_nan=True, msg=name)
            for got, p in zip(grads, model.parameters(), strict=True):
                torch.testing.assert_close(got, p.grad, rtol=1e-5, atol=1e-8, msg=name)


def test_kinks_are_missing_from_the_outer_gradient_however_many_points():
    """ΣIG = ℓ(x') − ℓ(x) in value, for any network; its gradient in the parameters is that of the difference only where
    there are no kinks (docs/training.md): what a moving kink does to the path's gradients has no derivative to be seen."""
    found = {}
    for act in (nn.Softplus, nn.ReLU):
        for points in (50, 400):
            model, seen = Small(act), []
            with torch.no_grad():
                model.conv2.weight *= 3  # kinks on the path
            objective = make("ig_norm", weight=1.0, size="sum", points=points, eps=1.0, bounds=None)
            objective.attack = Recorder(objective.attack, seen)
            loss = objective(model, X, Y, IDS)
            right = nnf.cross_entropy(model(seen[-1]), Y)  # natural training plus the whole difference
            torch.testing.assert_close(loss.total, right, rtol=0.05, atol=0)
            a, b = (
                torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])
                for total in (loss.total, right)
            )
            found[act, points] = float((a - b).norm() / b.norm())
    assert found[nn.Softplus, 400] < 0.2 * found[nn.Softplus, 50] < 0.002  # 1/m
    assert found[nn.ReLU, 50] > 0.1 < found[nn.ReLU, 400]  # whatever m
