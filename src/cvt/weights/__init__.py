"""Checkpoints: what they say about themselves, how they are read, written, checked and converted."""
