"""Do errors, intervals, tests and the stopping rule hold what they say? Trials with known truth, at n = 3, 8, 20 and more.

    python benchmarks/trials.py --out benchmarks/results/statistics.json
    python benchmarks/trials.py --show benchmarks/results/statistics.json --page docs/numbers.md

Every trial is keyed by its name. The file is written after each, and the same command goes on from it; ``--again PART``
makes one part anew. A few minutes of one core in all.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pages import fill
from scipy.stats import norm
from torch import Tensor

from consilience import simplex
from consilience.combine.draws import LOOKS, Draws
from consilience.combine.explained import UNEXPLAINED, mark_unexplained
from consilience.combine.named import named_objective
from consilience.combine.regret import solved_apart
from consilience.combine.sequential import until_sure
from consilience.combine.spread import weights_stderr
from consilience.combine.weights import Minimise
from consilience.explain.contest import OPTIMISM, Contest
from consilience.explain.decide import Comparison, Looks, students, until_decided
from consilience.explain.differences import paired_differences
from consilience.results.explanation import Measured
from consilience.statistics.criteria import CRITERIA
from consilience.statistics.evidence import Evidence, Quadratic, Responses, joined
from consilience.statistics.looks import Spending, obrien_fleming, pocock
from consilience.statistics.paired import holm, mean_interval, sign_flip_test, student_quantile

Trial = dict[str, Any]
LEVEL = 0.05


def keyed(name: str) -> np.random.Generator:
    """The random numbers of one trial."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def share(hits: np.ndarray | Tensor) -> list[float]:
    """A share and its binomial standard error."""
    hits = np.asarray(hits, dtype=float)
    p = float(hits.mean())
    return [round(p, 4), round(math.sqrt(p * (1 - p) / hits.size), 4)]


# -- Evaluation.compare: intervals and tests ---------------------------------------------------------------------------

DIFFERENCES: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], np.ndarray], bool]] = {
    "normal": (lambda rng, shape: rng.normal(size=shape), True),
    "uniform": (lambda rng, shape: rng.uniform(-1, 1, size=shape), True),
    "heavy tails (t, 3 degrees)": (lambda rng, shape: rng.standard_t(3, size=shape), True),
    "a fifth ten times as wide": (
        lambda rng, shape: rng.normal(size=shape) * rng.choice([0.2, 2.0], p=[0.8, 0.2], size=shape),
        True,
    ),
    "discrete (−1, 0, 1)": (lambda rng, shape: rng.choice([-1.0, 0.0, 1.0], p=[0.3, 0.4, 0.3], size=shape), True),
    "skewed (exponential)": (lambda rng, shape: rng.exponential(size=shape) - 1, False),
    "very skewed (log-normal)": (lambda rng, shape: rng.lognormal(size=shape) - math.exp(0.5), False),
}
"""Name → differences (trials, n) of mean zero, and whether they are symmetric, as those of exchangeable methods are."""


def student(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Student's interval."""
    n = values.shape[-1]
    reach = student_quantile(1 - LEVEL / 2, n - 1) * values.std(-1, ddof=1) / math.sqrt(n)
    return values.mean(-1) - reach, values.mean(-1) + reach


def bootstrap(values: np.ndarray, rng: np.random.Generator, draws: int = 1000) -> dict[str, tuple[float, float]]:
    """Percentiles of the bootstrapped mean, as ``compare`` gave them before, and BCa (Efron 1987), of (n,) values."""
    n = len(values)
    means = values[rng.integers(0, n, (draws, n))].mean(1)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    found = {"percentiles": (low, high)}
    below = ((means < values.mean()).mean() + (means <= values.mean()).mean()) / 2
    z0 = norm.ppf(np.clip(below, 1 / draws, 1 - 1 / draws))
    left_out = (values.sum() - values) / (n - 1)
    spread = left_out.mean() - left_out
    acceleration = (spread**3).sum() / (6 * (spread**2).sum() ** 1.5)
    z = z0 + norm.ppf([LEVEL / 2, 1 - LEVEL / 2])
    low, high = np.quantile(means, norm.cdf(z0 + z / (1 - acceleration * z)))
    return found | {"BCa": (low, high)}


def held(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Whether zero lies inside. Without a spread there is no interval, which claims nothing and misses nothing."""
    return ((low <= 0) & (high >= 0)) | np.isnan(low) | (low == high)


def compared(name: str, n: int) -> Trial:
    """Coverage of ``compare``'s interval and of others, and the rate of p ≤ .05."""
    draw, symmetric = DIFFERENCES[name]
    rng = keyed(f"{name} {n}")
    many = draw(rng, (20_000, n))
    some = many[: 800 if n > 8 else 2000]
    few = many[:1000]
    resampled = [bootstrap(values, rng) for values in few if np.ptp(values)]
    alike = len(few) - len(resampled)
    p = np.array([sign_flip_test(values) for values in some])
    trial: Trial = {
        "symmetric": symmetric,
        "this interval": share(held(*mean_interval(many))),
        "Student": share(held(*student(many))),
    }
    for kind in ("percentiles", "BCa"):
        bounds = np.array([each[kind] for each in resampled])
        trial[kind] = share(np.concatenate([held(*bounds.T), np.ones(alike)]))
    trial["sign flips turned round"] = share(p > LEVEL)
    trial["type I error"] = share(p <= LEVEL)
    low, high = mean_interval(many)
    a, b = student(many)
    trial["width"] = round(float(np.nanmedian(high - low) / np.nanmedian(b - a)), 3)
    return trial


def several(n: int, measures: int = 10) -> Trial:
    """Ten measures that go together, none of which differs: how often any p, and any corrected p, is ≤ .05."""
    rng = keyed(f"holm {n}")
    trials = 300 if n > 8 else 1000
    common = rng.normal(size=(trials, 1, n))
    own = rng.normal(size=(trials, measures, n))
    differences = (common + own) / math.sqrt(2)
    p = np.array([[sign_flip_test(values) for values in trial] for trial in differences])
    corrected = np.array([holm(each) for each in p])
    return {"any p": share((p <= LEVEL).any(1)), "any p (Holm)": share((corrected <= LEVEL).any(1))}


# -- what explain() measures: criteria, differences, weights -----------------------------------------------------------

TAILS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_t(5, size=shape) / math.sqrt(5 / 3),
    "skewed": lambda rng, shape: rng.exponential(size=shape) - 1,
}


def covered(value: Tensor, stderr: Tensor, truth: Tensor | float, draws: int) -> list[float]:
    """How often value ± t · stderr holds the truth."""
    reach = student_quantile(1 - LEVEL / 2, draws - 1) * stderr
    return share((value - truth).abs() <= reach)


def criterion(name: str, tail: str, draws: int, inputs: int = 4000) -> Trial:
    """Coverage of a criterion ± t times its standard error."""
    rng = keyed(f"{name} {tail} {draws}")
    one = torch.ones(inputs, 1, 1, dtype=torch.float64)
    if name == "relative_sensitivity":
        moves = torch.as_tensor(TAILS[tail](rng, (inputs, draws, 30)))
        evidence = Evidence(Quadratic(moves.square().mean(-1)[..., None, None], one))
        found = CRITERIA[name](evidence, one)
        return {"coverage": covered(found.value, found.stderr, 1.0, draws)}
    trial = {}
    for rho in (0.1, 0.5, 0.9):
        y = torch.as_tensor(TAILS[tail](rng, (inputs, draws)))
        a = rho * y + math.sqrt(1 - rho**2) * torch.as_tensor(TAILS[tail](rng, (inputs, draws)))
        found = CRITERIA[name](Evidence(responses=Responses(a[..., None], y)), one)
        truth = rho if name == "faithfulness_correlation" else 1 - rho**2
        trial[f"coverage, ρ = {rho}"] = covered(found.value, found.stderr, truth, draws)
    return trial


RHO = torch.tensor([0.5, 0.4, 0.45], dtype=torch.float64)
SIZES = torch.tensor([0.2, 0.22, 0.25], dtype=torch.float64)
COMMON = 0.8
"""Of the three methods' maps."""


def masks(rng: np.random.Generator, inputs: int, draws: int) -> Evidence:
    """Responses with the correlations ``RHO`` with the falls, and half of their noise in common."""
    y = torch.as_tensor(rng.normal(size=(inputs, draws)))
    common = torch.as_tensor(rng.normal(size=(inputs, draws, 1)))
    own = torch.as_tensor(rng.normal(size=(inputs, draws, 3)))
    noise = (1 - RHO**2).sqrt() * (common + own) / math.sqrt(2)
    return Evidence(responses=Responses(RHO * y[..., None] + noise, y))


def true_correlation(w: Tensor) -> Tensor:
    noise = (1 - RHO**2).sqrt() * w
    variance = noise.square().sum(1) / 2 + noise.sum(1).square() / 2
    signal = w @ RHO
    return signal / (signal**2 + variance).sqrt()


def neighbours(rng: np.random.Generator, inputs: int, draws: int) -> Evidence:
    """Independent moves of the sizes ``SIZES`` in 30 features, of maps that have ``COMMON`` of their square in common."""
    moves = torch.as_tensor(rng.normal(size=(inputs, draws, 3, 30))) / math.sqrt(30)
    moves = moves * SIZES.sqrt()[:, None]
    norm = COMMON + (1 - COMMON) * torch.eye(3, dtype=torch.float64)
    return Evidence(Quadratic(moves @ moves.mT, norm.expand(inputs, -1, -1)))


def true_sensitivity(w: Tensor) -> Tensor:
    return (w**2 @ SIZES) / (COMMON * w.sum(1).square() + (1 - COMMON) * w.square().sum(1))


class Aim(NamedTuple):
    """An objective with a known truth.

    Args:
        criterion: what it is judged by.
        draw: makes evidence of so many inputs and draws.
        truth: from weights (n, 3) to the criterion's true values (n,).
        word: names its random draws.
    """

    criterion: str
    draw: Callable[[np.random.Generator, int, int], Evidence]
    truth: Callable[[Tensor], Tensor]
    word: str


OBJECTIVES = {
    "faith": Aim("faithfulness_correlation", masks, true_correlation, "faith"),
    # When the stored trials were made, this objective was called robust: its draws keep that word.
    "relative_sensitivity": Aim("relative_sensitivity", neighbours, true_sensitivity, "robust"),
}
NAMES = ("a", "b", "c")


def difference(objective: str, draws: int, inputs: int = 2000) -> Trial:
    """Coverage of consensus − best single method, weights and pick from 50 other draws, judged on ``draws``."""
    name, draw, truth, word = OBJECTIVES[objective]
    rng = keyed(f"difference {word} {draws}")
    fit, fresh = draw(rng, inputs, 50), draw(rng, inputs, draws)
    mixing = Minimise(named_objective(objective)).fit(fit).weights
    rows = torch.cat([torch.eye(3, dtype=torch.float64).expand(inputs, -1, -1), mixing[:, None]], 1)
    before, after = CRITERIA[name](fit, rows), CRITERIA[name](fresh, rows)
    table = {
        row: Measured(before.value[:, i], after.value[:, i], after.stderr[:, i])
        for i, row in enumerate((*NAMES, "consensus"))
    }
    found = paired_differences(Minimise(named_objective(objective)), {name: table}, fresh, mixing, NAMES)[name]
    single = torch.eye(3, dtype=torch.float64)[[NAMES.index(str(best)) for best in found.best_single]]
    true = truth(mixing) - truth(single)
    inside = (found.low <= true) & (true <= found.high)
    apart = (after.stderr[:, 3].square() + after.stderr[:, 0].square()).sqrt()
    return {
        "coverage": share(inside),
        "true difference": round(float(true.mean()), 4),
        "standard error": round(float(found.stderr.mean()), 4),
        "if not paired": round(float(apart.mean()), 4),
    }


def spread(objective: str, draws: int, inputs: int = 1000) -> Trial:
    """The weights' standard errors, root mean square, beside their spread over inputs with the same truth."""
    aim = OBJECTIVES[objective]
    evidence = aim.draw(keyed(f"spread {aim.word} {draws}"), inputs, draws)
    rule = Minimise(named_objective(objective))
    actual = rule.fit(evidence).weights.std(0)
    reported = weights_stderr(rule, evidence).square().mean(0).sqrt()
    return {"reported": [round(v, 4) for v in reported.tolist()], "actual": [round(v, 4) for v in actual.tolist()]}


# -- judged until decided ----------------------------------------------------------------------------------------------

SPENDINGS: dict[str, tuple[Spending, float]] = {
    "this rule": (pocock, math.nan),
    "without giving up": (pocock, math.inf),
    "O'Brien and Fleming": (obrien_fleming, math.inf),
}
"""Name → how the level is shared among the looks, and the optimism before a comparison is given up; NaN: as explain has it."""

EQUALS = {
    "masks, ρ = .2 both": ("responses", 0.2, 0.2),
    "masks, ρ = .6 both": ("responses", 0.6, 0.6),
    "masks, ρ = 0 and a uniform map": ("responses", 0.0, 0.0),
    "neighbours, noise over signal .2 both": ("quadratic", 0.2, 0.2),
}
APART = {
    "masks, ρ = .6 and .5": ("responses", 0.6, 0.5),
    "masks, ρ = .3 and .2": ("responses", 0.3, 0.2),
    "masks, ρ = .2 and a uniform map": ("responses", 0.2, 0.0),
    "neighbours, noise over signal .15 and .2": ("quadratic", 0.15, 0.2),
    "neighbours, noise over signal .1 and .2": ("quadratic", 0.1, 0.2),
}
"""Name → kind of draw, and the truth of the consensus and of its rival."""


def two_rows(rng: np.random.Generator, kind: str, ours: float, theirs: float, tail: str, inputs: int) -> Evidence:
    """All draws that are allowed of a rival (row 0) and the consensus (row 1) with that truth."""
    last = LOOKS[kind][-1]
    draw = TAILS[tail]
    if kind == "responses":
        y = torch.as_tensor(draw(rng, (inputs, last)))
        truth = torch.tensor([theirs, ours], dtype=torch.float64)
        common = torch.as_tensor(draw(rng, (inputs, last, 1)))
        own = torch.as_tensor(draw(rng, (inputs, last, 2)))
        noise = (1 - truth**2).sqrt() * (common + own) / math.sqrt(2)
        return Evidence(responses=Responses(truth * y[..., None] + noise, y))
    size = torch.tensor([theirs, ours], dtype=torch.float64).sqrt()
    moves = size[:, None] * torch.as_tensor(draw(rng, (inputs, last, 2, 30))) / math.sqrt(30)
    # Two other outputs, by which the maps change by 1 on average.
    apart = torch.as_tensor(draw(rng, (inputs, 2, 2, 30))) / math.sqrt(30)
    one = torch.eye(2, dtype=torch.float64).expand(inputs, -1, -1)
    signal = Quadratic(apart @ apart.mT, one)
    return Evidence(quadratic=Quadratic(moves @ moves.mT, one), others={"contrast": signal})


def decided(name: str, truth: tuple[str, float, float], tail: str, inputs: int = 1000) -> Trial:
    """How often a consensus is called different from its rival, and with how many draws, by several rules.

    The looks, levels, comparisons and the loop are those of ``explain``. "every look at .05" takes the usual interval at each
    look. "confidence sequence" is the asymptotic one of Waudby-Smith et al. 2021 (arXiv 2103.06476), which holds at any time.
    """
    kind, ours, theirs = truth
    evidence = two_rows(keyed(f"decided {name} {tail}"), kind, ours, theirs, tail, inputs)
    beside = {}
    if kind == "quadratic":
        beside = {"contrast": [Evidence(others={"contrast": evidence["contrast"].inputs([i])}) for i in range(inputs)]}
    uniform = "uniform" in name
    aim = "noise_over_signal" if kind == "quadratic" else "faithfulness_correlation"
    consensus = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(inputs, -1)
    rival = torch.zeros(inputs, dtype=torch.int64)
    contest = Contest((aim,), {aim: rival}, consensus, beside, tolerance=0.0)

    looked_at = {}
    for count in LOOKS[kind]:
        part = evidence[kind].take(torch.arange(count))
        looked_at[count] = [Evidence.of({kind: part.inputs([i])}) for i in range(inputs)]

    def draw(index: Any, count: int) -> list[Evidence]:
        return [looked_at[count][i] for i in index]

    def compare(index: Any, drawn: Evidence) -> list[Comparison]:
        # The contest beside the best single method comes first, that beside a uniform map after it.
        return contest.compare(kind, index, drawn)[uniform:][:1]

    trial: Trial = {}
    for rule, (spending, optimism) in SPENDINGS.items():
        hope = OPTIMISM[kind] if math.isnan(optimism) else optimism
        looks = Looks(LOOKS[kind], LEVEL, min(hope, 1e6), spending)
        streams = until_decided(draw, range(inputs), looks, compare)
        called = torch.zeros(inputs, dtype=torch.bool)
        for number in range(len(LOOKS[kind])):
            at = [i for i, stream in enumerate(streams) if stream.look == number]
            if at:
                (comparison,) = compare(at, joined([streams[i].evidence for i in at]))
                estimate = comparison.estimate
                called[at] = (estimate.value.abs() > looks.reach(estimate, number))[:, 0]
        trial[rule] = share(called)
        trial[f"{rule}: draws"] = round(sum(stream.count for stream in streams) / inputs, 1)
    every = range(inputs)
    naive = torch.zeros(inputs, dtype=torch.bool)
    always = torch.zeros(inputs, dtype=torch.bool)
    for count in LOOKS[kind]:
        (comparison,) = compare(every, joined(draw(every, count)))
        estimate = comparison.estimate
        size = estimate.value[:, 0].abs()
        reach = estimate.stderr * students(estimate, torch.full((inputs,), LEVEL, dtype=torch.float64))
        naive |= size > reach[:, 0]
        # Tightest near half of the draws.
        tight = 2 * (1 - 2 * math.log(LEVEL) + math.log(1 - 2 * math.log(LEVEL))) / LOOKS[kind][-1]
        room = count * tight + 1
        wide = math.sqrt(2 * room / (count * tight) * math.log(math.sqrt(room) / LEVEL))
        always |= size > wide * estimate.stderr[:, 0]
    trial["every look at .05"] = share(naive)
    trial["confidence sequence"] = share(always)
    trial["one look at the end"] = share(size > reach[:, 0])
    return trial


# -- when to stop ------------------------------------------------------------------------------------------------------

GAINS = torch.linspace(1, 0.3, 7, dtype=torch.float64)
NOISE = 0.5 + 0.5 * torch.eye(7, dtype=torch.float64)
"""Seven methods with half of their noise in common, of which the weakest has .3 of the strongest's signal."""
MASKS = 1024


def signal_for(rho: float) -> Tensor:
    """(7,) signals with which the best convex mixture has the correlation ``rho``."""
    covariance = (GAINS[:, None] * GAINS + NOISE)[None]
    best = simplex.correlation(covariance, GAINS[None], torch.ones(1, dtype=torch.float64)).weights[0]
    return GAINS * (best @ NOISE @ best).sqrt() / (best @ GAINS) * rho / math.sqrt(1 - rho**2)


def reached(w: Tensor, signal: Tensor) -> Tensor:
    """(B,): the true correlation of mixtures (B, 7)."""
    inner = w @ signal
    return inner / (inner**2 + torch.einsum("bi,ij,bj->b", w, NOISE, w)).sqrt()


def former_rule(rule: Minimise, evidence: Evidence, weights: Tensor) -> Tensor:
    """(B,): the regret as it was before, a share of 1 − ρ²."""
    term = rule.goal.terms[0][1]
    folds = evidence.folds(5, "responses")
    fitted = solved_apart(rule, [outside for outside, _ in folds])
    inside = [(part.count("responses") / evidence.count("responses"), part) for _, part in folds]
    plain = term.over_blocks(evidence, inside, [weights] * 5)
    return (term.over_blocks(evidence, inside, fitted) / plain - 1) * 4 / 9


def stopping(rho: float, inputs: int = 300) -> Trial:
    """Loss of ρ, and masks, by the rule on 1 − ρ² and by that on ρ²; and how often nothing is said to be explained."""
    rng = keyed(f"stopping {rho}")
    signal = signal_for(rho)
    y = torch.as_tensor(rng.normal(size=(inputs, MASKS)))
    noise = torch.as_tensor(rng.normal(size=(inputs, MASKS, 7))) @ torch.linalg.cholesky(NOISE).mT
    every = Responses(signal * y[..., None] + noise, y)
    rule = Minimise(named_objective("faith"))

    def draw(at: Any, kind: str, samples: range) -> Evidence:
        return Evidence(responses=every.inputs(list(at)).take(torch.arange(samples.start, samples.stop)))

    def loss(w: Tensor) -> Tensor:
        return 1 - reached(w, signal) / rho if rho else torch.full_like(w[:, 0], torch.nan)

    lost_before = torch.full((inputs,), torch.nan, dtype=torch.float64)
    masks_before = torch.zeros(inputs)
    open_ = torch.ones(inputs, dtype=torch.bool)
    count = 128
    while bool(open_.any()):
        part = Evidence(responses=every.take(torch.arange(count)))
        w = rule.fit(part).weights
        stop = open_ & ((former_rule(rule, part, w) <= 0.02) | (count == MASKS))
        lost_before[stop], masks_before[stop] = loss(w)[stop], count
        open_ &= ~stop
        count *= 2
    price = {"quadratic": 100, "responses": 1}
    groups = until_sure(rule, draw, tuple(range(inputs)), Draws(2, MASKS), 0.02, price, ("responses",), 7)
    lost_after = torch.cat([loss(group.solved.weights) for group in groups])
    masks_after = torch.cat([torch.full((len(group.index),), float(group.draws.infidelity)) for group in groups])
    status = [said for group in groups for said in mark_unexplained(rule, group.evidence, group.solved.solution).status]
    return {
        "loss before": rounded(lost_before),
        "loss after": rounded(lost_after),
        "masks before": round(float(masks_before.mean())),
        "masks after": round(float(masks_after.mean())),
        "nothing explained": share(np.array([UNEXPLAINED in said for said in status])),
    }


def rounded(values: Tensor) -> list[float] | None:
    """Mean and standard error; None of what is not defined."""
    if bool(values.isnan().any()):
        return None
    return [round(float(values.mean()), 4), round(float(values.std() / math.sqrt(len(values))), 4)]


# -- all of them -------------------------------------------------------------------------------------------------------

COUNTS = (3, 8, 20)
DRAWS = (8, 20, 200)
CORRELATIONS = (0.0, 0.05, 0.1, 0.2, 0.5, 0.9)
INTERVALS = ("this interval", "Student", "BCa", "percentiles", "sign flips turned round")
SHOWN = ("relative_sensitivity", "faithfulness_correlation", "infidelity")


def trials() -> Iterator[tuple[str, str, Callable[[], Trial]]]:
    """(part, name, what makes the trial)."""
    for n in COUNTS:
        for name in DIFFERENCES:
            yield "compare", f"{name}, n = {n}", partial(compared, name, n)
        yield "several", f"n = {n}", partial(several, n)
    for draws in DRAWS:
        for name in SHOWN:
            for tail in TAILS:
                yield "criteria", f"{name}, {tail}, {draws} draws", partial(criterion, name, tail, draws)
    for objective in OBJECTIVES:
        for draws in DRAWS:
            yield "differences", f"{objective}, {draws} draws", partial(difference, objective, draws)
        for draws in (40, 240):
            yield "weights", f"{objective}, {draws} draws", partial(spread, objective, draws)
    for name, truth in {**EQUALS, **APART}.items():
        for tail in TAILS:
            yield "decided", f"{name}, {tail}", partial(decided, name, truth, tail)
    for rho in CORRELATIONS:
        yield "stopping", f"ρ = {rho}", partial(stopping, rho)


# -- the page ----------------------------------------------------------------------------------------------------------


def percent(value: list[float] | None) -> str:
    """A share in per cent with its standard error."""
    if value is None:
        return "–"
    return f"{100 * value[0]:.1f} ± {100 * value[1]:.1f}"


def table(heads: list[str], rows: list[list[Any]]) -> list[str]:
    """A Markdown table, and an empty line."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [*("| " + " | ".join(map(str, line)) + " |" for line in lines), ""]


def shown(result: Mapping[str, Mapping[str, Trial]]) -> str:
    """The tables of docs/numbers.md."""
    compare = result["compare"]
    at = [(name, n, compare[f"{name}, n = {n}"]) for name in DIFFERENCES for n in COUNTS]
    intervals = [[name, n, *(percent(row[kind]) for kind in INTERVALS), f"{row['width']:.2f}"] for name, n, row in at]
    lines = ["**Intervals.** How often a 95 % interval holds the mean difference of n inputs, in per cent:", ""]
    lines += table(["differences", "n", *INTERVALS, "its width / Student's"], intervals)
    lines += ["**Tests.** How often p ≤ .05 where the mean difference is zero, in per cent:", ""]
    errors = []
    for name, (_, symmetric) in DIFFERENCES.items():
        cells = [percent(compare[f"{name}, n = {n}"]["type I error"]) for n in COUNTS]
        errors.append([name if symmetric else f"{name}: not exchangeable", *cells])
    for kind in ("any p", "any p (Holm)"):
        cells = [percent(result["several"][f"n = {n}"][kind]) for n in COUNTS]
        errors.append([f"ten measures that go together, {kind}", *cells])
    lines += table(["differences", *(f"n = {n}" for n in COUNTS)], errors)
    lines += ["**Standard errors of criteria.** How often value ± t · standard error holds the truth, in per cent:", ""]
    rows = []
    for name in SHOWN:
        for tail in TAILS:
            each = [result["criteria"][f"{name}, {tail}, {draws} draws"] for draws in DRAWS]
            for kind in each[0]:
                rows.append([f"{name}{kind.removeprefix('coverage')}", tail, *(percent(trial[kind]) for trial in each)])
    lines += table(["criterion", "draws are", *(f"{draws} draws" for draws in DRAWS)], rows)
    lines += [
        "**Consensus − best single method** on fresh draws: the interval's coverage in per cent, and the error.",
        "",
    ]
    rows = []
    for name, trial in result["differences"].items():
        numbers = [trial[key] for key in ("true difference", "standard error", "if not paired")]
        rows.append([name, percent(trial["coverage"]), *numbers])
    lines += table(["objective", "coverage", "true difference", "standard error", "if not paired"], rows)
    lines += [
        "**Judged until decided.** How often the consensus is called different from its rival, in per cent: equals",
        "",
    ]
    rules = [*SPENDINGS, "every look at .05", "confidence sequence", "one look at the end"]
    rows = []
    for name in EQUALS:
        for tail in TAILS:
            trial = result["decided"][f"{name}, {tail}"]
            rows.append([name, tail, *(percent(trial[rule]) for rule in rules), trial["this rule: draws"]])
    heads = ["truth", "draws are", *rules, "draws, this rule"]
    lines += table(heads, rows)
    lines += ["… and what is different, with the draws that it took:", ""]
    rows = []
    for name in APART:
        for tail in TAILS:
            trial = result["decided"][f"{name}, {tail}"]
            cells = [f"{percent(trial[rule])} ({trial[f'{rule}: draws']})" for rule in SPENDINGS]
            rows.append([name, tail, *cells, *(percent(trial[rule]) for rule in rules[len(SPENDINGS) :])])
    lines += table(["truth", "draws are", *rules], rows)
    lines += ["**Weights.** Their standard errors, root mean square, beside their spread over new draws:", ""]
    rows = []
    for name, trial in result["weights"].items():
        rows.append([name, *(", ".join(f"{v:.3f}" for v in trial[kind]) for kind in ("reported", "actual"))])
    lines += table(["objective", "reported", "actual"], rows)
    lines += ['**When to stop.** `draws="auto"` with seven methods whose best mixture has the correlation ρ:', ""]
    rows = []
    for name, trial in result["stopping"].items():
        losses = [percent(trial[f"loss {when}"]) for when in ("before", "after")]
        masks = [trial[f"masks {when}"] for when in ("before", "after")]
        rows.append([name, losses[0], masks[0], losses[1], masks[1], percent(trial["nothing explained"])])
    heads = ["", "% of ρ lost, rule on 1 − ρ²", "masks", "% of ρ lost, rule on ρ²", "masks", "% said to be unexplained"]
    lines += table(heads, rows)
    return "\n".join(lines).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="the file to go on from and to write")
    parser.add_argument("--again", action="append", default=[], help="a part to make anew, e.g. stopping")
    parser.add_argument("--show", help="print a stored file's tables and do nothing else")
    parser.add_argument("--page", help="with --show: a Markdown page, in which they are put between the marks")
    options = parser.parse_args()
    if options.show:
        text = shown(json.loads(Path(options.show).read_text(encoding="utf-8")))
        return fill(options.page, Path(options.show).stem, text) if options.page else print(text)
    torch.set_num_threads(1)
    result: dict[str, dict[str, Trial]] = {}
    path = Path(options.out) if options.out else None
    if path is not None and path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
    for part in options.again:
        result.pop(part, None)
    for part, name, make in trials():
        done = result.setdefault(part, {})
        if name in done:
            continue
        done[name] = make()
        print(part, name, json.dumps(done[name], ensure_ascii=False), flush=True)
        if path is not None:
            path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(shown(result))


if __name__ == "__main__":
    main()
