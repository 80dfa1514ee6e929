"""Judge: how fast and how good a model is, in numbers beside their ceilings."""
