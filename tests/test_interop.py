"""Results for other libraries: shap's Explanation."""

from __future__ import annotations

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
    for options in ({}, {"sign": "abs", "scale": "none"}, {"sign": "keep"}):
        assert np.isnan(to_shap(explain(["deeplift"], **options)).base_values).all()
    r = explain(["deeplift", "input_x_gradient"], sign="keep", scale="none", weights=[[1.0, 0], [0.5, 0.5], [0, 1.0]])
    assert np.isnan(to_shap(r).base_values).tolist() == [False, True, True]


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
