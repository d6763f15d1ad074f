"""Measures over a data set."""
