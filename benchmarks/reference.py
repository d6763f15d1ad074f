"""A plain pipeline for AGG's optimal aggregation (arXiv 2406.05090), as one writes it with Captum, NumPy and cvxpy.

One perturbed input at a time, every method by itself, all residuals kept: what ``speed.py`` compares with. Settings are the
paper's: seven methods (50 integration steps, 20 noise draws with σ = .5), ε ~ U[−.1, .1], masks over 20 % of 16 × 16 patches
replaced by a blur of σ = 10 pixels, maps summed over channels, absolute, divided by their maximum. Noise inside SmoothGrad
and VarGrad is redrawn at every neighbour, as Captum does.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import captum.attr as ca
import cvxpy
import numpy as np
import torch
from torch import Tensor, fx, nn

RADIUS, PATCH, SHARE, SIGMA = 0.1, 16, 0.2, 10.0
STEPS, SAMPLES, STDEV = 50, 20, 0.5


@dataclass
class Passes:
    """Rows and calls of the networks, counted by a hook on each."""

    gradient: int = 0
    forward: int = 0
    calls: int = 0

    def watch(self, network: nn.Module) -> nn.Module:
        network.register_forward_hook(self.count)
        return network

    def count(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.calls += 1
        if torch.is_grad_enabled():
            self.gradient += len(inputs[0])
        else:
            self.forward += len(inputs[0])


@dataclass(frozen=True)
class Found:
    """``weights``: objective → (k,); ``status``: what the solver said."""

    weights: dict[str, np.ndarray]
    status: dict[str, str]
    passes: Passes


def separate(network: nn.Module) -> nn.Module:
    """The same function with a ReLU module for every call, not in place: what Captum's hooks need to be right."""
    traced = fx.symbolic_trace(copy.deepcopy(network))
    for number, node in enumerate(traced.graph.nodes):
        if node.op == "call_module" and isinstance(traced.get_submodule(node.target), nn.ReLU):
            traced.add_submodule(f"relu_{number}", nn.ReLU())
            node.target = f"relu_{number}"
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


@dataclass
class Reference:
    """``Reference(network)(x, target, m)`` → weights for ``paper_robust``, ``paper_faith`` and ``paper_opt``.

    ``between`` is called after every neighbour and mask, for whoever shares the machine.
    """

    network: nn.Module
    between: Callable[[], None] = lambda: None
    passes: Passes = field(default_factory=Passes)

    def __post_init__(self) -> None:
        self.plain = self.passes.watch(copy.deepcopy(self.network))
        apart = self.passes.watch(separate(self.network))
        noise = ca.NoiseTunnel(ca.Saliency(self.plain))
        tunnel = {"nt_samples": SAMPLES, "stdevs": STDEV, "abs": False}
        self.methods: list[tuple[Callable[..., Tensor], dict]] = [
            (ca.Saliency(self.plain).attribute, {"abs": False}),
            (ca.GuidedBackprop(apart).attribute, {}),
            (ca.DeepLift(apart).attribute, {}),
            (ca.IntegratedGradients(self.plain).attribute, {"n_steps": STEPS}),
            (ca.InputXGradient(self.plain).attribute, {}),
            (noise.attribute, {"nt_type": "smoothgrad", **tunnel}),
            (noise.attribute, {"nt_type": "vargrad", **tunnel}),
        ]

    def maps(self, x: Tensor, target: int) -> np.ndarray:
        """(k, H·W) of one input (1, C, H, W)."""
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Captum says that it sets hooks
            for attribute, options in self.methods:
                attribution = attribute(x.clone().requires_grad_(), target=target, **options)
                one = attribution.detach().sum(1).abs().flatten().cpu().numpy()
                found.append(one / max(one.max(), 1e-30))
        return np.stack(found)

    def score(self, x: Tensor, target: int) -> float:
        with torch.no_grad():
            return float(self.plain(x)[0, target])

    def __call__(self, x: Tensor, target: int, m: int, seed: int = 0) -> Found:
        random = np.random.default_rng(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            base = self.maps(x, target)
            changes = []
            for _ in range(m):
                noise = torch.as_tensor(random.uniform(-RADIUS, RADIUS, x.shape), dtype=x.dtype, device=x.device)
                changes.append(base - self.maps(x + noise, target))
                self.between()
        residuals = np.stack(changes).astype(np.float64)
        sensitivity = np.einsum("mkd,mld->kl", residuals, residuals) / m

        fall, taken = np.empty(m), np.empty((m, len(base)))
        blurred, clean = blur(x), self.score(x, target)
        rows, columns = -(-x.shape[2] // PATCH), -(-x.shape[3] // PATCH)
        for draw in range(m):
            gone = np.zeros(rows * columns, bool)
            gone[random.permutation(rows * columns)[: int(SHARE * rows * columns)]] = True
            mask = gone.reshape(rows, columns).repeat(PATCH, 0).repeat(PATCH, 1)[: x.shape[2], : x.shape[3]]
            masked = torch.where(torch.as_tensor(mask, device=x.device), blurred, x)
            fall[draw] = clean - self.score(masked, target)
            taken[draw] = base[:, mask.ravel()].sum(1, dtype=np.float64)
            self.between()
        beta = fall @ taken / np.maximum((taken**2).sum(0), 1e-300)
        missed = taken * beta - fall[:, None]
        infidelity = missed.T @ missed / m
        forms = {
            "paper_robust": sensitivity,
            "paper_faith": infidelity,
            "paper_opt": sensitivity / np.linalg.norm(sensitivity) + infidelity / np.linalg.norm(infidelity),
        }
        solved = {name: solve(form) for name, form in forms.items()}
        weights, status = ({name: pair[i] for name, pair in solved.items()} for i in (0, 1))
        return Found(weights, status, self.passes)


def solve(form: np.ndarray) -> tuple[np.ndarray, str]:
    """min wᵀGw over the simplex by cvxpy, and its status."""
    w = cvxpy.Variable(len(form), nonneg=True)
    scaled = cvxpy.psd_wrap(form / max(np.trace(form), 1e-300))
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.quad_form(w, scaled)), [cvxpy.sum(w) == 1])
    problem.solve()
    value = np.maximum(w.value, 0)
    return value / value.sum(), problem.status


def blur(x: Tensor) -> Tensor:
    """Gaussian, σ = 10 pixels, the kernel cut off and renormalised at the borders."""
    for axis in (2, 3):
        place = np.arange(x.shape[axis])
        kernel = np.exp(-((place[:, None] - place) ** 2) / (2 * SIGMA**2))
        kernel = torch.as_tensor(kernel / kernel.sum(1, keepdims=True), dtype=x.dtype, device=x.device)
        x = torch.einsum("nchw,ih->nciw" if axis == 2 else "nchw,iw->nchi", x, kernel)
    return x
