"""Elastic sizes: sub-models as views, policies that choose one, speculative decoding."""
