"""Inference: KV cache, decoder steps, sampler, and the sessions that make tokens with them."""
