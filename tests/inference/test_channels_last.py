"""What is copied on the way: nothing as large as the tokens of a stage."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import cvt
import networks

_COPIES = ("aten.clone", "aten.copy_", "aten.contiguous", "aten._to_copy", "aten.cat")


class Copies(TorchDispatchMode):
    """Notes the largest copy, in numbers, and every operator's input that is not without gaps."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.gaps: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        if name in _COPIES:
            self.sizes.append(out.numel())
        if "convolution" in name and not _has_no_gaps(args[0]):
            self.gaps.append(f"{name} {tuple(args[0].shape)}")
        if "layer_norm" in name and not args[0].is_contiguous():
            self.sizes.append(args[0].numel())
        return out


def _has_no_gaps(fmap: torch.Tensor) -> bool:
    return fmap.is_contiguous(memory_format=torch.channels_last)


def copies(name, batch, size, **options):
    model = cvt.deploy(networks.small(name), **options)
    images = networks.image(name, batch, size).contiguous(memory_format=torch.channels_last)
    with Copies() as noted:
        model(images)
    return noted


@pytest.mark.parametrize("name", ["cvt_13", "cvt_nano_32"])
def test_nothing_as_large_as_the_tokens_is_copied(name):
    batch, size = 3, (128, 128)
    noted = copies(name, batch, size)
    model = networks.small(name)
    grids = model.spec.grids(size)
    tokens = [h * w * s.embed_dim for (h, w), s in zip(grids, model.spec.stages, strict=True)]
    assert noted.gaps == []
    # Keys and values of the class token's stage, a quarter of its tokens, are put together.
    assert max(noted.sizes, default=0) < batch * min(tokens) / 2


def test_without_the_pass_there_are_such_copies():
    noted = copies("cvt_13", 3, (128, 128), without=["channels_last"])
    assert len(noted.gaps) >= 3
    assert max(noted.sizes) >= 3 * 8 * 8 * 384


def test_one_image_travels_in_one_tensor():
    """Behind the prefix of a single image the grid has no gaps."""
    noted = copies("cvt_13", 1, (128, 128))
    assert noted.gaps == []
    prefixed = [size for size in noted.sizes if size == (1 + 64) * 384]
    assert len(prefixed) == 2  # the class token joins the stage, and its queries
