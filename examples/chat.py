"""Talk to an instruction-tuned model: python examples/chat.py PATH_OR_HUB_ID

The whole conversation is passed every turn; the session reads only what is new. An empty line, or
the end of the input, leaves.
"""

import sys

import gemelo

if len(sys.argv) < 2:
    sys.exit("usage: python examples/chat.py PATH_OR_HUB_ID, an instruction-tuned model's")
model = gemelo.load(sys.argv[1])
session = model.session()
messages: list[dict[str, str]] = []
print("> ", end="", flush=True)
for line in sys.stdin:
    if not line.strip():
        break
    messages.append({"role": "user", "content": line})
    answer = ""
    for piece in session.stream(model.tokens(messages), max_tokens=256):
        answer += piece.text
        print(piece.text, end="", flush=True)
    messages.append({"role": "assistant", "content": answer})
    timings = session.timings
    print(f"\n[read {timings.prefill_tokens} tokens, reused {timings.reused_tokens}]")
    print("> ", end="", flush=True)
