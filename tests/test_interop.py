"""Results for other libraries: shap's Explanation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import Small, images
from torch import nn

import consilience as cs
from consilience.results.to_shap import to_shap

shap = pytest.importorskip("shap")
FEW = {"fit_draws": 3, "fresh_draws": 3, "resolved_draws": 0, "objective": "robust", "target": 1}
X = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()


def explain(methods, model=None, x=X, **options):
    return cs.explain(net() if model is None else model, x, methods=methods, **(FEW | options))


def test_complete_methods_start_from_the_score_at_the_baseline():
    model = net()
    r = explain(["integrated_gradients", "deeplift"], model, sign="keep", scale="none")
    at_zero = model(torch.zeros(1, 5).double())[0, 1].item()
    for row in ("deeplift", "integrated_gradients", "mean", "consensus"):
        shown = to_shap(r, row, feature_names=list("abcde"))
        np.testing.assert_allclose(shown.base_values, at_zero, atol=1e-5)
        np.testing.assert_allclose(shown.base_values + shown.values.sum(1), model(X)[:, 1].detach())
        np.testing.assert_array_equal(shown.data, X)
    assert shown.feature_names == list("abcde") and shown[0].values.shape == (5,)


def test_what_does_not_add_up_has_no_base_value():
    for options in ({"sign": "abs"}, {"sign": "abs", "scale": "none"}):
        assert np.isnan(to_shap(explain(["deeplift"], **options)).base_values).all()
    r = explain(["deeplift", "input_x_gradient"], sign="keep", scale="none", weights=[[1.0, 0], [0.5, 0.5], [0, 1.0]])
    assert np.isnan(to_shap(r).base_values).tolist() == [False, True, True]


@pytest.mark.parametrize("scale", ["max", "l2"])
def test_scaled_maps_are_shown_in_units_of_the_score(scale, tmp_path):
    methods = ["integrated_gradients", "deeplift"]
    plain = explain(methods, sign="keep", scale="none", weights=[0.5, 0.5])
    scaled = explain(methods, sign="keep", scale=scale, weights=[0.5, 0.5])
    scaled.save(tmp_path / "run")
    for row in (*methods, "mean", "consensus"):
        shown, again = to_shap(scaled, row), to_shap(cs.load(tmp_path / "run"), row)
        # Whatever the shares are, contributions that add up still do.
        np.testing.assert_allclose(shown.base_values, to_shap(plain, row).base_values, atol=1e-5)
        np.testing.assert_allclose(again.values, shown.values, rtol=1e-6, atol=1e-7)
        if row in methods:
            np.testing.assert_allclose(shown.values, to_shap(plain, row).values, atol=1e-9)


def test_features_are_ranked_by_what_they_do_to_the_score():
    # The first input has a score a thousand times as large, and its feature is the most important of all.
    x = torch.tensor([[1000.0, 1.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    model = nn.Linear(2, 3).double()
    r = explain(["integrated_gradients", "deeplift"], model, x, sign="keep", objective="mean")
    importance = np.abs(to_shap(r).values).mean(0)
    expected = (x * model.weight[1].detach()).abs().mean(0).numpy()
    np.testing.assert_allclose(importance, expected, rtol=1e-6)


def test_results_without_scales_are_shown_as_they_are_with_a_warning(tmp_path):
    r = explain(["deeplift"], sign="keep")
    old = replace(r, scales=torch.full_like(r.scales, torch.nan))
    with pytest.warns(UserWarning, match="did not keep the scales"):
        np.testing.assert_array_equal(to_shap(old).values, r.attribution)


def test_only_contributions():
    r = explain(["deeplift", "saliency"], weights=[1.0, 0.0])
    assert np.isfinite(to_shap(r).values).all()
    for row in ("saliency", "mean"):
        with pytest.raises(cs.InputError, match="saliency, which give no contributions"):
            to_shap(r, row)
    with pytest.raises(cs.InputError, match="is var"):
        to_shap(explain(["deeplift", "input_x_gradient"], objective="var"))
    with pytest.raises(cs.InputError, match="unknown row"):
        to_shap(r, "uniform")


def test_pixels_lie_as_shaps_image_plot_wants_them():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    r = explain(["deeplift"], Small(), images(), sign="keep", scale="none")
    shown = to_shap(r)
    assert shown.values.shape == (3, 8, 8, 1) and shown.data.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(shown.data[1, :, :, 2], images()[1, 2])
    shap.image_plot(shown, show=False)
    plt.close("all")
    patches = to_shap(explain(["deeplift"], Small(), images(), features="patches"))
    assert patches.data is None and patches.values.shape == (3, 1, 1)
