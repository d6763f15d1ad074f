"""Statistics of draws and of maps, without any model.

``keys.py``: random draws by name. ``responses.py``, ``evidence.py``: what the draws showed, which adds up. ``criteria.py``:
numbers of it, with standard errors. ``paired.py``: tests and intervals for few inputs. ``bounds.py``: what holds without any
draw. ``ranks.py``: rank correlations. ``tensors.py``: helpers of all of these.
"""
