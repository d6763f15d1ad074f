"""Layer-CAM and Score-CAM beside pytorch-grad-cam, up to its scaling of every map to 0…1; NoiseGrad's degenerate cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Small, bound, images
from torch import nn

from consilience.errors import InputError
from consilience.explainers import Saliency, Stack
from consilience.explainers.cam import LayerCAM, ScoreCAM, stretched
from consilience.explainers.weight_noise import FusionGrad, NoiseGrad, _noise, set_noisy_weights
from consilience.model.copies import duplicate
from consilience.statistics.keys import Key

TARGET = torch.tensor([1, 0, 3])


def ours(explainer, model=None):
    return Stack([explainer]).attribute(*bound(model or Small(), images(), TARGET))[:, 0]


def theirs(name, layer):
    library = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = Small().float()
    with getattr(library, name)(model=model, target_layers=[getattr(model, layer)]) as method:
        return method(input_tensor=images().float(), targets=[ClassifierOutputTarget(int(t)) for t in TARGET])


def scaled(maps):
    return stretched(torch.as_tensor(maps)[:, None].double())[:, 0].numpy()


@pytest.mark.parametrize("layer", ["act1", "act2"])
def test_layer_cam(layer):
    np.testing.assert_allclose(scaled(ours(LayerCAM(layer)).sum(1)), scaled(theirs("LayerCAM", layer)), atol=1e-5)


def test_score_cam_where_nothing_is_upsampled():
    np.testing.assert_allclose(scaled(ours(ScoreCAM("act1")).sum(1)), scaled(theirs("ScoreCAM", "act1")), atol=1e-5)


def test_score_cam_elsewhere_differs_by_how_its_masks_are_upsampled(monkeypatch):
    """pytorch-grad-cam shifts masks by align_corners=True; without that, both are the same."""
    found = scaled(ours(ScoreCAM("act2")).sum(1))
    assert np.abs(found - scaled(theirs("ScoreCAM", "act2"))).max() > 1e-3
    upsampling = lambda size: nn.Upsample(size=size, mode="bilinear", align_corners=False)  # noqa: E731
    monkeypatch.setattr(nn, "UpsamplingBilinear2d", upsampling)
    np.testing.assert_allclose(found, scaled(theirs("ScoreCAM", "act2")), atol=1e-5)


def test_score_cam_asks_the_most_active_channels():
    score, points = bound(Small(), images())
    score.layer("act2", points.x[:1], points.owner[:1])  # its probe is counted too
    start = score.counts.forward
    few = Stack([ScoreCAM("act2", channels=2)]).attribute(score, points)
    assert score.counts.forward - start == 3 * 2
    assert not torch.allclose(few, Stack([ScoreCAM("act2", channels=None)]).attribute(score, points))
    torch.testing.assert_close(
        Stack([ScoreCAM("act2", channels=6)]).attribute(score, points),
        Stack([ScoreCAM("act2", channels=None)]).attribute(score, points),
    )
    with pytest.raises(InputError, match="channels"):
        ScoreCAM(channels=0)


def test_a_constant_channel_masks_everything():
    assert torch.equal(stretched(torch.full((1, 1, 2, 2), 3.0)), torch.zeros(1, 1, 2, 2))


def test_without_noise_it_is_the_gradient():
    for explainer in (NoiseGrad(2, stdev=0.0), FusionGrad(2, 2, stdev=0.0, input_stdev=0.0)):
        torch.testing.assert_close(ours(explainer), ours(Saliency()))


def test_recurrent_and_tied_weights_are_perturbed_once_in_a_copy():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.one = nn.LSTM(3, 3, batch_first=True), nn.Linear(3, 3)
            self.two = nn.Linear(3, 3)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(self.rnn(x)[0][:, -1]))

    model, x = Tied().eval(), torch.ones(2, 4, 3)
    before, clean = {k: v.clone() for k, v in model.state_dict().items()}, model.rnn(x)[0].detach()
    noisy = duplicate(model)
    set_noisy_weights(noisy, model, Key(0), 0, 0.3)
    assert noisy.two.weight is noisy.one.weight and noisy.one.weight is not model.one.weight
    assert not torch.allclose(noisy.rnn(x)[0], clean)
    ratio = (noisy.one.weight.data / before["one.weight"] - 1) / 0.3
    torch.testing.assert_close(ratio, _noise(Key(0, "/one.weight"), 0, ratio), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(model.rnn(x)[0], clean)


def test_weights_are_needed():
    with pytest.raises(InputError, match="plain callable"):
        Stack([NoiseGrad()]).attribute(*bound(lambda x: x.flatten(1), images()))
    with pytest.raises(InputError, match="at least 1"):
        ours(NoiseGrad(0))
