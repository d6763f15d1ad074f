"""Perturbed inputs: points and the neighbourhoods around them, baselines, masks and coalitions of features, imputation."""
