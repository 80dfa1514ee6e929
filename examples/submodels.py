"""One Gemma 3n in several sizes: python examples/submodels.py [PATH_OR_HUB_ID]

Without a model it makes one with random weights, in which everything works and no text means much.
"""

import sys
import tempfile
from pathlib import Path

import random_gemma3n

import gemelo

with tempfile.TemporaryDirectory() as scratch:
    path = sys.argv[1] if len(sys.argv) > 1 else random_gemma3n.write(Path(scratch) / "random")
    model = gemelo.load(path)
print(model)
prompt, settings = "The capital of France is", {"temperature": 0, "max_tokens": 12}

e2b = model.submodel("E2B")  # a view: every weight is the model's own
print("E2B:", repr(e2b.generate(prompt, **settings).text))

session = model.session()  # change size between tokens
ids = model.tokenizer.encode(prompt)
for count, _ in enumerate(session.stream(ids, gemelo.Sampling(**settings))):
    if count == 5:
        session.use("E2B")
print("sizes along one text:", session.written_by)
session.use("E4B", rebuild="now")
print("after a rebuild:", set(session.written_by), session.stats)

session = model.session()
draft = session.speculate("E2B", gamma=4)  # the same text as without, in fewer passes
print("drafted:", repr(session.generate(ids, **settings).text))
print(f"accepted {draft.accepted} of {draft.drafted} guesses")
print("widths of E2.54B:", set(gemelo.Submodel.named("E2.54B", model.config).ffn_widths))
