"""How far methods of coalitions are from their own exact values, with what they evaluate now and with what they did before.

    python benchmarks/coalitions.py [--seeds 40] [--out FILE.json]
    python benchmarks/coalitions.py --show FILE.json

Games are points of tables of 12 to 14 columns (scikit-learn's wine and breast cancer; networks, forests, boosted trees; the
mean is the baseline) and of a digit in 4 × 4 patches. All 2^A coalitions of each are evaluated, so that every method's own
value is known: Shapley values, LIME's regression and RISE's mean over all coalitions, each with equal chances. An error is the
root mean square over features and seeds. What is called before are the estimates of version 0.1 up to November 2026: LIME on
1000 independent masks, KernelSHAP by regression on 2 A + 2048 coalitions, RISE as the average over 4000 masks, 25 permutations.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from consilience.explainers import LIME, RISE, FeatureAblation, KernelSHAP, ShapleySampling, Stack
from consilience.explainers.shapley_weights import _constrained, enumerated
from consilience.model.score import Score
from consilience.perturb.coalition_lists import every
from consilience.perturb.coalitions import Kernel
from consilience.perturb.kernel_design import design_weights
from consilience.perturb.points import Points
from consilience.statistics.keys import Key

METHODS = (FeatureAblation(), LIME(), KernelSHAP(), ShapleySampling(), RISE())
MASKS = 4000
DRAWS = 1000
ORDERS = 25
Values = Callable[[np.ndarray], np.ndarray]


def games() -> Iterator[tuple[str, np.ndarray]]:
    """Names, and (2^A,) the values of all coalitions: coalition n is without feature a if bit a of n is set."""
    for columns in (12, 13, 14):
        for name, (data, labels) in {
            "wine": load_wine(return_X_y=True),
            "cancer": load_breast_cancer(return_X_y=True),
        }.items():
            if data.shape[1] < columns:
                continue
            rows = StandardScaler().fit_transform(data[:, :columns])
            network = MLPClassifier((32, 32), max_iter=600, random_state=0).fit(rows, labels)
            forest = RandomForestClassifier(60, random_state=0).fit(rows, labels)
            boosted = GradientBoostingClassifier(n_estimators=40, random_state=0).fit(rows, labels)
            for at in (3, len(rows) // 2, len(rows) - 5):
                label = labels[at]
                models: dict[str, Values] = {
                    "network, logit": lambda a, m=network, c=label: logits(m, a)[:, min(c, logits(m, a).shape[1] - 1)],
                    "network": lambda a, m=network, c=label: m.predict_proba(a)[:, c],
                    "forest": lambda a, m=forest, c=label: m.predict_proba(a)[:, c],
                    "boosted": lambda a, m=boosted, c=label: m.predict_proba(a)[:, c],
                }
                for kind, model in models.items():
                    gone = every(columns).numpy()
                    yield f"{name}-{columns}, {kind}, {at}", model(np.where(gone, 0.0, rows[at]))
    digits, labels = load_digits(return_X_y=True)
    digits = digits / 16
    network = MLPClassifier((64, 32), max_iter=200, random_state=0).fit(digits, labels)
    side = np.arange(8) // 2
    patches = (side[:, None] * 4 + side).ravel()
    gone = every(16).numpy()[:, patches]
    for at in (3, 11):
        rows = np.where(gone, digits.mean(0), digits[at])
        yield f"digits-16, network, logit, {at}", logits(network, rows)[:, labels[at]]
        yield f"digits-16, network, {at}", network.predict_proba(rows)[:, labels[at]]


def logits(network: MLPClassifier, rows: np.ndarray) -> np.ndarray:
    """The outputs of a network of scikit-learn before softmax, (n, classes)."""
    for layer, (weight, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        rows = rows @ weight + bias
        if layer < len(network.coefs_) - 1:
            rows = np.maximum(rows, 0)
    return rows


def lime_of(there: np.ndarray, values: np.ndarray, each: float = 1.0) -> np.ndarray:
    """LIME's slopes, where each row counts ``each`` times."""
    weights = np.exp(-((1 - np.sqrt(there.mean(1))) ** 2) / (2 * 0.25**2)) * each
    rows = np.concatenate([np.ones((len(there), 1)), there], 1)
    gram = rows.T @ (rows * weights[:, None]) + np.diag([0.0] + [1.0] * there.shape[1])
    return np.linalg.solve(gram, rows.T @ (values * weights))[1:]


def exact(values: np.ndarray) -> dict[str, np.ndarray]:
    """Each method's own value, from all coalitions."""
    features = int(math.log2(len(values)))
    there = (~every(features).numpy()).astype(float)
    shapley = enumerated(features).numpy() @ values
    return {
        "feature_ablation": values[0] - values[1 << np.arange(features)],
        "lime": lime_of(there, values, DRAWS / len(values)),
        "kernel_shap": shapley,
        "shapley_sampling": shapley,
        "rise": there.T @ values / (len(values) / 2),
    }


def before(values: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The estimates as they were."""
    features = int(math.log2(len(values)))
    bits = 1 << np.arange(features)
    random = np.random.default_rng(seed)
    found = {"feature_ablation": values[0] - values[bits]}

    drawn = random.integers(0, len(values), DRAWS)
    drawn[0] = 0
    there = (~every(features).numpy()[drawn]).astype(float)
    found["lime"] = lime_of(there, values[drawn])

    budget = 2 * features + 2048
    small = Kernel(budget).coalitions(Key(seed, "before"), features)[::2]
    weights = design_weights(features, budget)[::2]
    slopes = _constrained(torch.where(small, -1.0, 1.0).double(), weights / weights.sum()).numpy()
    codes = np.concatenate([[0], small.numpy() @ bits])
    found["kernel_shap"] = slopes @ (values[codes] - values[len(values) - 1 - codes]) / 2

    total = np.zeros(features)
    order = random.permutation(features)
    for number in range(ORDERS):
        order = random.permutation(features) if number % 2 == 0 else order[::-1]
        along = values[np.concatenate([[0], np.cumsum(bits[order])])]
        total[order] += along[:-1] - along[1:]
    found["shapley_sampling"] = total / ORDERS

    drawn = random.integers(0, len(values), MASKS)
    there = (~every(features).numpy()[drawn]).astype(float)
    found["rise"] = there.T @ values[drawn] / MASKS / 0.5
    return found


def evaluations_before(features: int) -> dict[str, int]:
    """What the estimates evaluated, method by method."""
    return {
        "feature_ablation": 1 + features,
        "lime": DRAWS,
        "kernel_shap": min(2**features, 2 * features + 2048 + 2),
        "shapley_sampling": 1 + ORDERS * features,
        "rise": MASKS,
    }


def now(values: np.ndarray, seed: int) -> tuple[dict[str, np.ndarray], int]:
    """The estimates as they are, and how many forwards they took together."""
    features = int(math.log2(len(values)))
    table = torch.from_numpy(values)
    bits = 1 << torch.arange(features)

    def model(rows):
        return table[((rows == 0).long() * bits).sum(1)][:, None]

    x = torch.ones(1, features, dtype=torch.float64)
    score = Score(model, kind="output").at(x)
    points = Points(x, torch.zeros(1, dtype=torch.int64), score.ids)
    begun = score.counts.forward
    maps = Stack(METHODS, seed).attribute(score, points)[0]
    found = {method.name: row.numpy() for method, row in zip(METHODS, maps, strict=True)}
    return found, score.counts.forward - begun


def measured(seeds: int) -> dict:
    """The errors of every game, and the evaluations of every number of features."""
    by_features: dict[int, list[tuple[str, np.ndarray]]] = {}
    for name, values in games():
        by_features.setdefault(int(math.log2(len(values))), []).append((name, values))
    rows: list[dict] = []
    evaluations: dict[str, dict] = {}
    for features, alike in by_features.items():
        own = [exact(values) for _, values in alike]
        squares = {when: [dict.fromkeys(one, 0.0) for one in own] for when in ("before", "now")}
        together = 0
        # Seed by seed: all games with a seed share its coalitions.
        for seed in range(seeds):
            for place, (_, values) in enumerate(alike):
                found, spent = now(values, seed)
                together = max(together, spent)
                for when, estimates in (("now", found), ("before", before(values, seed))):
                    for method, value in own[place].items():
                        squares[when][place][method] += float(np.mean((estimates[method] - value) ** 2)) / seeds
        for place, (name, _) in enumerate(alike):
            row: dict = {"game": name, "features": features}
            row["size"] = {method: float(np.sqrt(np.mean(value**2))) for method, value in own[place].items()}
            for when, of_games in squares.items():
                row[when] = {method: math.sqrt(square) for method, square in of_games[place].items()}
            rows.append(row)
        evaluations[str(features)] = {
            "before": evaluations_before(features),
            "now": {method.name: Stack([method]).rows((features,))["forward"] for method in METHODS},
            "together": together,
        }
        print(f"{features} features: {len(alike)} points", flush=True)
    return {"seeds": seeds, "evaluations": evaluations, "games": rows}


def show(result: dict) -> None:
    """The tables of docs/speed.md."""
    print("| features | before | now, one by one | now, together | fewer by |\n|---|---|---|---|---|")
    for features, counts in result["evaluations"].items():
        former, together = sum(counts["before"].values()), counts["together"]
        print(f"| {features} | {former} | {sum(counts['now'].values())} | {together} | {former / together:.1f} |")
    print("\n| method | evaluations of 13 features | error now / before: geometric mean | largest |\n|---|---|---|---|")
    for method in METHODS[1:]:
        name = method.name
        # Where both are rounding (sums of single and pairwise effects), a ratio says nothing.
        ratios = [
            game["now"][name] / game["before"][name]
            for game in result["games"]
            if game["before"][name] > 1e-9 * game["size"][name]
        ]
        counts = result["evaluations"]["13"]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"| `{name}` | {counts['before'][name]} → {counts['now'][name]} | {mean:.2f} | {max(ratios):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", type=Path)
    args = parser.parse_args()
    if args.show:
        show(json.loads(args.show.read_text(encoding="utf-8")))
        return
    warnings.filterwarnings("ignore", module="sklearn")
    result = measured(args.seeds)
    show(result)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
