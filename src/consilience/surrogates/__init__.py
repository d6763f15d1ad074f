"""Simple models that stand for the score near an input.

``linear_fits.py``: ridge and lasso for a batch at once. ``lime_maple.py``: LIME for tables and MAPLE, as baselines of training
for explanations. ``local_linear.py``: a map read as a linear model of the score, and how well it fits.
"""
