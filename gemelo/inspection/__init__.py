"""See: what a model is made of and does, drawn from the functions that run."""
