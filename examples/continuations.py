"""Several continuations of one prompt: it is read once, and its cache copied."""

import gemelo

model = gemelo.load()
completion = model.generate("My favourite food is", n=3, seed=1, max_tokens=12, stop=".")
for choice in completion.choices:
    print(f"{choice.finish_reason:6} {choice.text.strip()!r}")
