"""The catalogue is complete: what is promised is there, with a card, a twin, and its page."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import consilience.explainers as explainers
from consilience.cli.methods import CARDS, describe, markdown, overview
from consilience.combine.aggregations import AGGREGATIONS
from consilience.combine.named import OBJECTIVES
from consilience.explainers import METHODS, PRESETS
from consilience.measures import MEASURES, SETS
from consilience.metrics import METRICS

ROOT = Path(__file__).parents[1]
PROMISED = {
    "methods": (
        "saliency input_x_gradient integrated_gradients expected_gradients gradient_shap smoothgrad smoothgrad_squared vargrad "
        "uniformgrad guided_backprop deeplift grad_cam grad_cam_plus_plus eigen_cam layer_cam score_cam noisegrad fusiongrad "
        "feature_ablation occlusion rise lime kernel_shap shapley_sampling maple"
    ),
    "metrics": "AverageSensitivity Infidelity Contrast Alignment LocalFidelity Completeness",
    "measures": (
        "max_sensitivity local_lipschitz ris rrs ros faithfulness_correlation infidelity road_morf road_lerf pixel_flipping "
        "insertion deletion sensitivity_n irof monotonicity relevance_mass relevance_rank pointing_game mprt smooth_mprt "
        "efficient_mprt random_logit gini_sparseness entropy_complexity effective_complexity truncated_l2 feature_agreement "
        "sign_agreement rank_agreement top_k_intersection kendall_tau local_fidelity completeness"
    ),
    "aggregations": "mean var median rank weighted",
}


def test_everything_promised_is_there():
    assert set(PROMISED["methods"].split()) <= set(METHODS)
    assert set(PROMISED["metrics"].split()) <= set(METRICS)
    assert set(PROMISED["measures"].split()) <= set(MEASURES)
    assert set(PROMISED["aggregations"].split()) <= set(AGGREGATIONS)
    assert callable(explainers.captum)


@pytest.mark.parametrize("name, thing", [(n, c) for group in CARDS.values() for n, c in group.items()], ids=str)
def test_each_has_a_card_that_says_what_it_is(name, thing):
    card = thing.card
    assert is_dataclass(thing) and card.formula and card.source and card.cost, name
    assert card.better in ("lower", "higher", "")
    assert all(len(pair) == 2 and all(pair) for pair in card.differences)
    if name in MEASURES:
        assert thing.name == name and thing.undefined
    shown = describe(name)
    assert card.formula in shown and card.source in shown and thing.__name__ in shown


def test_the_page_is_what_the_command_prints():
    page = (ROOT / "docs" / "catalogue.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: consilience methods --markdown > docs/catalogue.md"


def test_sets_and_presets_name_what_exists():
    assert all(name in MEASURES for names in SETS.values() for name in names)
    assert set(SETS["all"]) == set(MEASURES)
    text = overview()
    for name in (*METHODS, *MEASURES, *PRESETS, *SETS, *OBJECTIVES, *AGGREGATIONS):
        assert name in text


def test_the_page_of_results_shows_what_is_stored_and_nothing_is_missing_without_a_reason():
    stored = json.loads((ROOT / "benchmarks" / "results" / "catalogue.json").read_text(encoding="utf-8"))
    spec = importlib.util.spec_from_file_location("catalogue", ROOT / "benchmarks" / "catalogue.py")
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules["catalogue"] = benchmark  # dataclasses look their module up
    spec.loader.exec_module(benchmark)
    text = (ROOT / "docs" / "catalogue-results.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<!-- catalogue -->\n(.*?)\n<!-- /catalogue -->", text, re.DOTALL)
    assert shown.strip() == benchmark.page(stored).strip()
    # Methods and measures that came later are in the next run: to add one needs no run of the benchmark.
    judged = {measure for case in stored["cases"].values() for measure in case["measures"]}
    asked = {row for case in stored["cases"].values() for row in case["rows"]}
    assert judged >= set(PROMISED["measures"].split())
    assert asked >= set(PROMISED["methods"].split())
    for name, case in stored["cases"].items():
        assert not case["missing_without_reason"], name
        for measure, rows in case["measures"].items():
            missing = sum(case["n"] - cell["n"] for cell in rows.values())
            assert not missing or case["reasons"].get(measure), (name, measure)
