"""The registry: every model by name, here and in timm."""
