"""Perplexity of a text under a model: the scoring path, every position's scores at once."""

import numpy as np

import gemelo

TEXT = "In the beginning God created the heaven and the earth."

model = gemelo.load()
ids = model.tokenizer.encode(TEXT)
scores = model.scores(ids[:-1]).astype(np.float64)  # (T, V)
scores -= scores.max(-1, keepdims=True)
logprobs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
chosen = logprobs[np.arange(len(ids) - 1), ids[1:]]
for token, logprob in zip(ids[1:], chosen, strict=True):
    print(f"{model.tokenizer.decode([token])!r:14} {logprob:8.3f}")
print(f"perplexity {np.exp(-chosen.mean()):.2f} over {len(ids) - 1} tokens")
