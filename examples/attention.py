"""Look inside: where a token looks in each layer, and what each layer would say next.

python examples/attention.py [PATH_OR_HUB_ID]; without one, the embedded default. It needs PyTorch:
pip install 'gemelo[torch]'.
"""

import sys

import gemelo

PROMPT = "The capital of France is"

model = gemelo.load(*sys.argv[1:2])
print(model)
pieces = model.tokenizer.convert_ids_to_tokens(model.tokenizer.encode(PROMPT))
outputs = model.forward(PROMPT, output_hidden_states=True, output_attentions=True)

# Attentions are L tensors (H, T, T). The last token's row, the mean of all heads:
print("what the last token looks at most:")
for layer, probabilities in enumerate(outputs.attentions):
    row = probabilities[:, -1].mean(0)  # (T,)
    place = int(row.argmax())
    kind = model.config.layer(layer).type.split("_")[0]
    print(f"  layer {layer:2} {kind:8} {pieces[place]:10} {float(row[place]):.2f}")

# Hidden states are L + 1 tensors (T, D); how far a layer turns the last token (Gemma 3n has four
# streams, (S, T, D), of which the first is the one that layers compute on).
print("cosine of the last token before and after each layer:")
states = [state[0] if state.dim() == 3 else state for state in outputs.hidden_states]
for layer, (before, after) in enumerate(zip(states[:-2], states[1:-1], strict=True)):
    cosine = before[-1] @ after[-1] / (before[-1].norm() * after[-1].norm())
    print(f"  layer {layer:2} {float(cosine):.3f}")

best = outputs.logits[-1].softmax(-1).topk(3)
for probability, token in zip(*best, strict=True):
    print(f"{model.tokenizer.decode([token])!r:12} {float(probability):.3f}")
