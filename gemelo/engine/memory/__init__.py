"""Memory: what of a model is in it, in which layout, and what can leave."""
