"""``cs.explain`` and ``cs.Consensus``: attributions of a batch, measured, combined, and judged on fresh draws."""
