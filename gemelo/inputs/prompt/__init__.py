"""Prompts: messages, chat template and media to token ids with places for embeddings."""
