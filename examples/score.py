"""Perplexity of a text under a model: the scoring path, every position's scores at once."""

import torch

import gemelo

TEXT = "In the beginning God created the heaven and the earth."

model = gemelo.load()
ids = model.tokenizer.encode(TEXT)
logprobs = model.logits(ids[:-1]).log_softmax(-1)
chosen = logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
for token, logprob in zip(ids[1:], chosen.tolist(), strict=True):
    print(f"{model.tokenizer.decode([token])!r:14} {logprob:8.3f}")
print(f"perplexity {float(torch.exp(-chosen.mean())):.2f} over {len(ids) - 1} tokens")
