"""Attacks within a ball around the input: on the loss, and on the attribution."""
