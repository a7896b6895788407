"""The one place that imports what timm keeps private, so that one test can watch it."""

from timm.models._features import feature_take_indices

__all__ = ["feature_take_indices"]
