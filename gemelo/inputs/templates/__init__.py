"""Chat templates, run by an interpreter of our own that counts what they do and knows who wrote
what."""
