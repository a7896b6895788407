"""What people look at: where a model attends."""

from cvt.explanation.attention import AttentionMap, attention_maps

__all__ = ["AttentionMap", "attention_maps"]
