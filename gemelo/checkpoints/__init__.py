"""Checkpoints: model files found, opened, checked, cut, loaded and converted."""
