"""Keyed draws, evidence, criteria with standard errors, ranks."""
