"""Results: explanations, evaluations, their files."""
