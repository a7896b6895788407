"""Checkpoints: what they say about themselves; reading, writing, checking, converting them."""
