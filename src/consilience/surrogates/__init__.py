"""Local surrogate models: linear fits, LIME, MAPLE."""
