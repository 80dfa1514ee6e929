"""The tokenizer: text to token ids and back, from any of the files it comes in."""
