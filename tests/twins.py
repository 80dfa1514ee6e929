"""transformers' decoders with the weights of ours: the oracle of the networks' tests."""

from __future__ import annotations

from transformers import (
    Gemma3ForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Gemma3TextConfig,
)

from gemelo.models.gemma3 import Gemma3
from gemelo.models.gemma3n import Gemma3n


def gemma3_twin(model: Gemma3) -> Gemma3ForCausalLM:
    raw = model.config.to_hf()
    twin = Gemma3ForCausalLM(Gemma3TextConfig(**raw, attn_implementation="eager")).eval()
    state = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    twin.load_state_dict(state)
    return twin


def gemma3n_twin(model: Gemma3n) -> Gemma3nForCausalLM:
    raw = {key: value for key, value in model.config.to_hf().items() if key != "architectures"}
    twin = Gemma3nForCausalLM(Gemma3nTextConfig(**raw, attn_implementation="eager")).eval()
    state = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    twin.load_state_dict(state)
    return twin
