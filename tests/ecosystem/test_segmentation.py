"""segmentation_models_pytorch stands on timm: our networks are its `tu-` encoders.

Keyword arguments of a model of its own reach the encoder, and so `timm.create_model`.
"""

import pytest
import torch

import cvt

smp = pytest.importorskip("segmentation_models_pytorch")


def one_training_step(model, images, classes: int) -> None:
    """Every weight of the encoder gets a gradient, and the step moves its stem."""
    target = torch.randint(0, classes, (len(images), *images.shape[2:]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    masks = model(images)
    assert masks.shape == (len(images), classes, *images.shape[2:])
    torch.nn.functional.cross_entropy(masks, target).backward()
    stem = model.encoder.model.model.stages[0].embed.proj.weight
    before = stem.detach().clone()
    optimizer.step()
    assert not torch.equal(stem, before)
    for key, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("extra", [{}, {"extra_level": True}], ids=["by itself", "named"])
@pytest.mark.parametrize("architecture", ["Unet", "FPN"])
def test_at_its_defaults_the_fourth_level_is_the_extra_one(architecture, extra):
    torch.manual_seed(0)
    model = getattr(smp, architecture)(
        "tu-cvt_13", encoder_weights=None, classes=3, drop_path_rate=0, **extra
    ).train()
    assert model.encoder.out_channels == [3, 0, 64, 192, 384, 384]
    one_training_step(model, torch.randn(2, 3, 64, 96), classes=3)


@pytest.mark.parametrize("architecture", ["PSPNet", "Linknet", "MAnet", "UPerNet", "Segformer"])
def test_other_decoders_at_their_defaults(architecture):
    model = getattr(smp, architecture)("tu-cvt_13", encoder_weights=None, classes=2).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 96)).shape == (1, 2, 64, 96)


@pytest.mark.parametrize(
    ("architecture", "encoder", "keyword"),
    [
        ("PAN", "tu-cvt_13", {"encoder_output_stride": 32}),
        ("PAN", "tu-cvt_13", {"encoder_depth": 4}),
        ("DeepLabV3Plus", "tu-cvt_13", {"encoder_depth": 4}),
        ("DeepLabV3", "tu-cvt_13", {"encoder_depth": 3}),
        ("Unet", "tu-cvt_nano_32", {"encoder_depth": 4, "decoder_channels": (32, 16, 16, 8)}),
    ],
)
def test_where_defaults_do_not_fit_the_sentence_names_what_does(architecture, encoder, keyword):
    with pytest.raises(cvt.UserError, match=r"has levels 0 to \d, at strides") as raised:
        getattr(smp, architecture)(encoder, encoder_weights=None)
    (name, value), *_ = keyword.items()
    assert name in str(raised.value)
    assert f"={value}" in str(raised.value)
    model = getattr(smp, architecture)(encoder, encoder_weights=None, **keyword).eval()
    side = 256 if architecture == "PAN" else 64  # which pools a grid of eight three times
    with torch.no_grad():
        assert model(torch.randn(1, 3, side, side)).shape == (1, 1, side, side)


def test_unet_on_three_levels():
    """Without the extra level the encoder is one shallower, and so is the decoder."""
    model = smp.Unet(
        "tu-cvt_13",
        encoder_weights=None,
        encoder_depth=4,
        decoder_channels=(64, 32, 16, 16),
    ).eval()
    assert model.encoder.out_channels == [3, 0, 64, 192, 384]
    with torch.no_grad():
        assert model(torch.randn(1, 3, 48, 80)).shape == (1, 1, 48, 80)


def test_other_channels_and_a_small_row():
    model = smp.FPN(
        "tu-cvt_13", encoder_weights=None, in_channels=1, extra_level=True, kv_stride=1
    ).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, 64, 64)).shape == (1, 1, 64, 64)


def test_a_wrong_keyword_is_named():
    with pytest.raises(cvt.UserError, match="Did you mean 'extra_level'"):
        smp.Unet("tu-cvt_13", encoder_weights=None, extra_levels=True)
