"""Ten thousand quadratic programs over the simplex, solved as one batch, beside cvxpy and SciPy's SLSQP one by one.

    python benchmarks/solvers.py [--count 10000] [--methods 8] [--out FILE.json]

min wᵀGw, w ≥ 0, Σw = 1, with G = RRᵀ of random residuals: a component that the methods share, norms over two decades, and in
every tenth problem a method that is listed twice. cvxpy's problem is compiled once, with R as its parameter; SLSQP gets
the gradient. All weights are judged alike: clipped at zero, divided by their sum, and wᵀGw over the best single method's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cvxpy
import numpy as np
import torch
from scipy.optimize import minimize

from consilience import simplex


def problems(count: int, k: int, seed: int) -> np.ndarray:
    """(count, k, k + 4): residuals; their Gram matrices are the problems."""
    random = np.random.default_rng(seed)
    residuals = random.normal(size=(count, k, k + 4)) + random.normal(size=(count, 1, k + 4))
    residuals *= 10 ** random.uniform(-1, 1, (count, k, 1))
    residuals[::10, 1] = residuals[::10, 0]
    return residuals


def batched(residuals: np.ndarray) -> np.ndarray:
    r = torch.as_tensor(residuals)
    return simplex.quadratic(r @ r.mT).weights.numpy()


def by_cvxpy(residuals: np.ndarray) -> np.ndarray:
    """With the solver that cvxpy chooses, at its default tolerance."""
    count, k, dims = residuals.shape
    w, r = cvxpy.Variable(k, nonneg=True), cvxpy.Parameter((dims, k))
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(r @ w)), [cvxpy.sum(w) == 1])
    found = np.full((count, k), np.nan)
    for i, one in enumerate(residuals):
        r.value = one.T / np.linalg.norm(one)
        try:
            problem.solve(warm_start=False)
        except cvxpy.SolverError:
            continue
        found[i] = np.nan if w.value is None else w.value
    return found


def by_slsqp(residuals: np.ndarray) -> np.ndarray:
    count, k, _ = residuals.shape
    found = np.full((count, k), np.nan)
    ones = np.ones(k)
    total = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: ones}
    for i, one in enumerate(residuals):
        form = one @ one.T
        form /= np.diag(form).min()
        done = minimize(
            lambda w, form=form: w @ form @ w, ones / k, jac=lambda w, form=form: 2 * form @ w, method="SLSQP",
            bounds=[(0, 1)] * k, constraints=total, options={"ftol": 1e-12, "maxiter": 200},
        )  # fmt: skip
        found[i] = done.x if done.success else np.nan
    return found


def worth(residuals: np.ndarray, w: np.ndarray) -> np.ndarray:
    """(count,): the mixture's value over the best single method's."""
    w = np.maximum(w, 0)
    w = w / w.sum(1, keepdims=True)
    best = (residuals**2).sum(2).min(1)
    return (np.einsum("nk,nkd->nd", w, residuals) ** 2).sum(1) / best


SOLVERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"ours": batched, "cvxpy": by_cvxpy, "slsqp": by_slsqp}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--methods", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out")
    options = parser.parse_args()
    residuals = problems(options.count, options.methods, options.seed)
    seconds, values = {}, {}
    for name, solver in SOLVERS.items():
        solver(residuals[:2])  # compilation and first calls
        began = time.perf_counter()
        found = solver(residuals)
        seconds[name] = time.perf_counter() - began
        values[name] = worth(residuals, found)
        print(f"{name:6} {seconds[name]:8.2f} s {1e6 * seconds[name] / options.count:8.1f} µs each", flush=True)
    result = {
        "count": options.count, "methods": options.methods, "seed": options.seed, "seconds": seconds,
        "time_over_ours": {name: seconds[name] / seconds["ours"] for name in SOLVERS},
        # Values over the best single method's: how much lower another solver got, and how much higher it stayed.
        "ours_above": {name: float(np.nanmax(values["ours"] - values[name])) for name in SOLVERS},
        "ours_below": {name: float(np.nanmax(values[name] - values["ours"])) for name in SOLVERS},
        "failed": {name: int(np.isnan(values[name]).sum()) for name in SOLVERS},
        "machine": {
            "cpu": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            **{name: version(name) for name in ("torch", "numpy", "scipy", "cvxpy")},
        },
    }  # fmt: skip
    print(json.dumps({key: result[key] for key in ("time_over_ours", "ours_above", "ours_below", "failed")}, indent=1))
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
