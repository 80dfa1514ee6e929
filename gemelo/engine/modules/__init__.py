"""Modules: decoders in PyTorch behind the same protocol, for CUDA, training and comparison."""
