"""Multimodal encoders: media to embeddings in a prompt, by vision tower and audio encoder."""
