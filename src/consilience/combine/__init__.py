"""How maps become one: aggregations, weights, regret, sequential draws."""
