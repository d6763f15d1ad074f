"""What calls give back, explanations and evaluations, and the files that they are saved to and loaded from."""
