"""One forward of a whole prompt through modules: logits, hidden states, attention probabilities.

What transformers returns with `output_hidden_states` and `output_attentions` (`models.outputs`). It
has no cache, and stays the plain oracle beside the steps with one.

    outputs = forward(ModuleDecoder.of(decoder), tokens, output_hidden_states=True)

T tokens.
"""

from __future__ import annotations

import numpy as np

from gemelo.engine.engine import check_room
from gemelo.engine.modules.decoder import ModuleDecoder
from gemelo.engine.step import check_result
from gemelo.engine.tokens import Tokens, step_inputs
from gemelo.models import outputs
from gemelo.models.outputs import CausalLMOutput
from gemelo.weights.mapped import check as check_files


def forward(
    decoder: ModuleDecoder,
    tokens: Tokens,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
) -> CausalLMOutput:
    """Run checked tokens through the modules, all at once: see `gemelo.models.outputs`.

    Raises UnavailableError where memory has no room for what is asked.
    """
    config, count = decoder.config, len(tokens)
    layers, numbers = config.num_hidden_layers, count * config.vocab_size
    if output_hidden_states:
        numbers += (layers + 1) * config.altup_num_inputs * count * config.hidden_size
    if output_attentions:
        numbers += layers * config.num_attention_heads * count * count
    check_room(count, 4 * numbers)
    check_files(decoder.weights.files)
    inputs = step_inputs(decoder, tokens, 0)
    found = outputs.forward(
        decoder.module,
        decoder.tensor(tokens.ids),
        decoder.tensor(range(count)),
        None if inputs is None else decoder.tensors(inputs),
        output_hidden_states,
        output_attentions,
    )
    check_result(decoder.weights, bool(np.isfinite(found.logits.cpu().numpy()).all()))
    return found
