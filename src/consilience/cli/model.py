"""The model that the common options name."""

from __future__ import annotations

import argparse

from ..data.models import Loaded, load_model


def load(arguments: argparse.Namespace) -> Loaded:
    """--model, --checkpoint, --random-weights, --labels, --device → the model with its preprocessing and labels."""
    return load_model(
        arguments.model,
        checkpoint=arguments.checkpoint,
        random_weights=arguments.random_weights,
        labels=arguments.labels,
        device=arguments.device,
    )
