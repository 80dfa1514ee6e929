"""Time: one token after another, from caches and steps to the `Model` that a user holds."""
