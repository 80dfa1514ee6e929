"""Inspection: model summaries and image crops, drawn from the functions that run."""
