"""Stream a continuation from the embedded default, then show what the likeliest tokens were."""

import gemelo

model = gemelo.load()

session = model.session()
prompt = model.tokens("The capital of France is")
for piece in session.stream(prompt, temperature=0, max_tokens=16):
    print(piece.text, end="", flush=True)
print(f"\n{session.timings.decode_tokens_per_s:.1f} tokens/s")

completion = model.generate("Once upon a time", temperature=0, max_tokens=1, logprobs=5)
for token, logprob in completion.choices[0].top_logprobs[0]:
    print(f"{model.tokenizer.decode([token])!r:12} {logprob:.2f}")
