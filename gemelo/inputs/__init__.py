"""People: text in, token ids out, and back; later pictures and sound."""
