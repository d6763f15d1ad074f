"""Perturbed inputs: points, baselines, neighbourhoods, masks, coalitions, imputation."""
