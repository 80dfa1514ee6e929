"""Programs: the forward of each family as a list of steps, which run natively or in NumPy."""
