"""The small trained model that comes with the library, so that prediction needs no download."""

from pathlib import Path

DEMO = "demo"


def demo_file() -> Path:
    """Returns the demo model's checkpoint; the README beside it says what it is worth."""
    return Path(__file__).with_name("demo_model") / "cvt_nano_32_cifar10.safetensors"
