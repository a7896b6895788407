"""The one place that imports what timm keeps private; tests/parts/test_timm_contract.py watches it."""

from timm.models._features import feature_take_indices

__all__ = ["feature_take_indices"]
