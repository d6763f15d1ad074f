"""``cs.evaluate``: measures of methods, aggregations and the consensus over a data set."""
