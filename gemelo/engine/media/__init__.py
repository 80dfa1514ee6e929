"""The vision tower and the audio encoder at work: media to embeddings in a prompt."""
