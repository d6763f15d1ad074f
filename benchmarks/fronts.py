"""How far above the least the sensitivity of ``opt`` is, beside many searches of each front.

    python benchmarks/fronts.py [--count 30] [--searches 32] --out FILE.json
    python benchmarks/fronts.py --show FILE.json --page docs/speed.md

The most robust mixture whose correlation reaches the best single method's: by the scan of the front alone, and solved as
``opt`` does it. The least known is that of both and of SciPy's SLSQP with exact slopes, from corners and random mixtures. On
evidence of models trained here, of digits and of a table, and on random problems.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from pages import fill
from scipy.optimize import minimize
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn

import consilience as cs
from consilience.simplex import front
from consilience.statistics.evidence import joined

GRADIENTS = ["saliency", "input_x_gradient", "integrated_gradients", "smoothgrad", "deeplift", "guided_backprop"]
BOTH = [*GRADIENTS, "kernel_shap", "lime", "feature_ablation"]
Problem = tuple[Tensor, ...]  # G, H, C, b, the variance of y, and the responses' means


def trained(net: nn.Module, x: Tensor, y: Tensor, steps: int) -> nn.Module:
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net.eval()


def evidence(model: nn.Module, x: Tensor, methods: object, draws: tuple[int, int], sign: str) -> Problem:
    found = cs.explain(
        model, x, methods=methods, objective="mean", sign=sign, fresh_draws=2, resolved_draws=0,
        fit_draws=dict(zip(("average_sensitivity", "infidelity"), draws, strict=True)),
    )  # fmt: skip
    clean = joined(found.evidence["fit"]).rows(slice(len(found.methods))).clean()
    q, r = clean.quadratic, clean.responses
    assert q is not None and r is not None
    return q.matrix, q.norm, *r.covariances(), r.a.mean(1)


def at_random(count: int, k: int, common: float, seed: int) -> Problem:
    """Residuals, maps and responses of ``k`` methods, with what they share ``common`` times as large as what they do not."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    residuals, maps, a = (normal(count, k, n) + common * normal(count, 1, n) for n in (3 * k, 3 * k, 60))
    y = (a * normal(count, k, 1).clamp(min=-0.3)).sum(1) + 2 * a.std() * normal(count, 60)
    da, dy = a - a.mean(2, keepdim=True), y - y.mean(1, keepdim=True)
    covariance = da @ da.mT / 60, (da * dy[:, None]).mean(2), (dy**2).mean(1)
    return residuals @ residuals.mT, maps @ maps.mT, *covariance, a.mean(2)


def problems(count: int) -> Iterator[tuple[str, Problem]]:
    torch.manual_seed(0)
    digits, labels = map(torch.tensor, load_digits(return_X_y=True))
    digits = digits.float().view(-1, 1, 8, 8) / 16
    cnn = trained(
        nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(1024, 10),
        ), digits, labels, 100,
    )  # fmt: skip
    table, classes = map(torch.tensor, load_breast_cancer(return_X_y=True))
    table = ((table - table.mean(0)) / table.std(0)).float()
    mlp = trained(
        nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2)), table, classes, 300
    )
    for draws in ((5, 128), (40, 1024)):
        said = f"{draws[0]} neighbours, {draws[1]} masks"
        yield f"digits, CNN, absolute maps, 8 methods, {said}", evidence(cnn, digits[:count], "standard", draws, "abs")
        yield f"digits, CNN, signed maps, 8 methods, {said}", evidence(cnn, digits[:count], "standard", draws, "keep")
        yield f"breast cancer, MLP, 6 gradient methods, {said}", evidence(mlp, table[:count], GRADIENTS, draws, "keep")
        yield f"breast cancer, MLP, 9 methods of both kinds, {said}", evidence(mlp, table[:count], BOTH, draws, "keep")
    yield "random, 9 methods that share nothing", at_random(count, 9, 0.0, 1)
    yield "random, 9 methods that share most", at_random(count, 9, 2.0, 1)


def search(problem: Sequence[Tensor], floor: float, starts: list[np.ndarray]) -> float:
    """The least uᵀGu / uᵀHu with ρ ≥ floor that SLSQP finds for one input."""
    G, H, C, b, v = (part.numpy() for part in problem[:5])
    unit = np.diag(H) ** -0.5
    G, H, C = (m * unit[:, None] * unit for m in (G, H, C))
    b = b * unit / v**0.5
    r = lambda u: u @ G @ u / (u @ H @ u)  # noqa: E731
    above = lambda u: b @ u / (u @ C @ u) ** 0.5 - floor  # noqa: E731
    limits = [
        {"type": "eq", "fun": lambda u: u.sum() - 1, "jac": np.ones_like},
        {"type": "ineq", "fun": above, "jac": lambda u: (b - b @ u / (u @ C @ u) * (C @ u)) / (u @ C @ u) ** 0.5},
    ]
    slope = lambda u: 2 * (G @ u - r(u) * (H @ u)) / (u @ H @ u)  # noqa: E731
    found = [math.inf]
    with np.errstate(all="ignore"):
        for start in starts:
            u = minimize(
                r, start, jac=slope, bounds=[(0, 1)] * len(b), constraints=limits, method="SLSQP",
                options={"maxiter": 200, "ftol": 1e-12},
            ).x.clip(min=0)  # fmt: skip
            found += [r(u)] * bool(above(u) >= -1e-9 and r(u) > 0)
    return min(found)


def judged(problem: Problem, searches: int, seed: int = 0) -> dict:
    """Relative excess over the least known, mean and largest over inputs, and seconds of a batch."""
    *rest, mean = problem
    began = time.perf_counter()
    found = front(*rest, mean=mean)
    seconds = {"scan": time.perf_counter() - began}
    began = time.perf_counter()
    solved = found.pick().value
    seconds["pick"] = time.perf_counter() - began
    reaches = found.keep & (found.correlation >= found.floor[:, None])
    values = {"scan": torch.where(reaches, found.robustness, torch.inf).amin(1), "solved": solved}
    count, k = rest[3].shape
    random = np.random.default_rng(seed)
    starts = [*(0.9 * np.eye(k) + 0.1 / k), *random.dirichlet(np.full(k, 0.5), max(0, searches - k))]
    searched = [search(tuple(p[i] for p in problem), float(found.floor[i]), starts) for i in range(count)]
    least = torch.stack([torch.tensor(searched), *values.values()]).amin(0)
    fine = least > 0
    excess = {name: (value / least - 1)[fine] for name, value in values.items()}
    return {
        "n": int(fine.sum()), "k": k, "seconds": seconds,
        **{name: {"mean": float(e.mean()), "most": float(e.max())} for name, e in excess.items()},
        "searches_above": float((torch.tensor(searched) / least - 1)[fine].clamp(max=9).mean()),
    }  # fmt: skip


def shown(result: dict) -> str:
    rows = result["problems"]
    # Files stored before the pick was solved by Newton's method say "refined".
    solved = "solved" if all("solved" in row for row in rows.values()) else "refined"
    lines = [f"| problems | n | scan alone | {solved} |", "|---|---|---|---|"]
    for name, row in rows.items():
        cells = (f"{100 * row[kind]['mean']:.2f} % ({100 * row[kind]['most']:.1f} %)" for kind in ("scan", solved))
        lines.append(f"| {name} | {row['n']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--searches", type=int, default=32, help="runs of SLSQP for each input")
    parser.add_argument("--out")
    parser.add_argument("--show", help="print a stored file's table and do nothing else")
    parser.add_argument("--page", help="with --show: a Markdown page, in which the table is put between the marks")
    options = parser.parse_args()
    if options.show:
        text = shown(json.loads(Path(options.show).read_text(encoding="utf-8")))
        return fill(options.page, Path(options.show).stem, text) if options.page else print(text)
    rows = {}
    for name, problem in problems(options.count):
        rows[name] = judged(problem, options.searches)
        print(name, json.dumps(rows[name]), flush=True)
    versions = {name: version(name) for name in ("torch", "numpy", "scipy")}
    result = {
        "count": options.count, "searches": options.searches, "problems": rows,
        "machine": {"cpu": platform.machine(), "threads": torch.get_num_threads(), **versions},
    }  # fmt: skip
    print(shown(result))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
