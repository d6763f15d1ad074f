"""Loads the model that --model, --checkpoint and the other common options name."""

from __future__ import annotations

import argparse

from ..data.models import Loaded, load_model


def load(arguments: argparse.Namespace) -> Loaded:
    """The model with its preprocessing and labels.

    Args:
        arguments: with --model, --checkpoint, --random-weights, --labels and --device.
    """
    return load_model(
        arguments.model,
        checkpoint=arguments.checkpoint,
        random_weights=arguments.random_weights,
        labels=arguments.labels,
        device=arguments.device,
    )
