"""The model: its score, its state, batches of rows, backward rules, layers with places."""
