"""The model: its score, what its outputs mean, its state lent and given back, backward rules, layers with places."""
