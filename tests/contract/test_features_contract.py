"""The pyramid: `features_only`, `forward_intermediates`, pruning, the optional stride-32 level."""

import itertools

import pytest
import timm
import torch

import cvt
from cvt.systems.catalog import ROWS, timm_name
from cvt.systems.cvt import PAPER_ROWS
from networks import CVT_NAMES, FORMS, NAMES, STAGED, changes_of, image, meta, small
from randomise import randomise


def features(name: str, create=timm.create_model, **changes):
    changes = {**changes_of(name), **changes}
    name = timm_name(name) if create is timm.create_model else name
    return create(name, features_only=True, **changes)


@pytest.mark.parametrize("name", CVT_NAMES)
def test_rows_declare_channels_strides_and_modules(name):
    with torch.device("meta"):
        model = cvt.create_model(name)
    first = ROWS[name].stages[0].embed_stride
    assert [level["num_chs"] for level in model.feature_info] == [
        stage.embed_dim for stage in ROWS[name].stages
    ]
    assert [level["reduction"] for level in model.feature_info] == [first, 2 * first, 4 * first]
    if name in PAPER_ROWS:
        assert first == 4
    modules = dict(model.named_modules())
    assert all(level["module"] in modules for level in model.feature_info)


@pytest.mark.parametrize("create", [timm.create_model, cvt.create_model], ids=["timm", "cvt"])
@pytest.mark.parametrize("name", NAMES)
def test_features_only(name, create):
    model = randomise(features(name, create)).eval()
    images = image(name, 2, (64, 96))
    with torch.no_grad():
        maps = model(images)
    assert len(maps) == len(meta(name, **changes_of(name)).feature_info)
    channels, strides = model.feature_info.channels(), model.feature_info.reduction()
    assert [tuple(fmap.shape) for fmap in maps] == [
        (2, width, 64 // stride, 96 // stride)
        for width, stride in zip(channels, strides, strict=True)
    ]
    assert all(fmap.isfinite().all() for fmap in maps)
    assert not any("head" in key or key.startswith("model.norm") for key in model.state_dict())


@pytest.mark.parametrize("out_indices", [(0,), (1,), (0, 2), (-1,), (-2, -1), 2], ids=str)
@pytest.mark.parametrize("name", ["cvt_13", "pvt_nano_32", "t2t_nano_32"])
def test_out_indices(name, out_indices):
    whole = features(name).eval()
    model = features(name, out_indices=out_indices).eval()
    model.load_state_dict(whole.state_dict(), strict=False)
    levels = [0, 1, 2]
    wanted = levels[-out_indices:] if isinstance(out_indices, int) else out_indices
    wanted = [levels[index] for index in wanted]
    with torch.no_grad():
        expected, maps = whole(image(name)), model(image(name))
    assert len(maps) == len(wanted)
    assert model.feature_info.channels() == [whole.feature_info.channels()[i] for i in wanted]
    assert len(model.model.stages) == wanted[-1] + 1
    for index, fmap in zip(wanted, maps, strict=True):
        assert torch.equal(fmap, expected[index])


@pytest.mark.parametrize("name", NAMES)
def test_features_train_every_parameter_that_is_left(name):
    model = randomise(features(name, drop_path_rate=0)).train()
    sum(fmap.square().mean() for fmap in model(image(name))).backward()
    missing = [key for key, p in model.named_parameters() if p.grad is None]
    assert missing == []


@pytest.mark.parametrize("name", NAMES)
def test_forward_intermediates_agrees_with_forward_features(name):
    model = small(name).eval()
    with torch.no_grad():
        tokens, maps = model.forward_intermediates(image(name))
        assert torch.equal(tokens, model.forward_features(image(name)))
        only = model.forward_intermediates(image(name), intermediates_only=True)
    assert len(maps) == len(only) == len(model.feature_info)
    assert all(torch.equal(a, b) for a, b in zip(maps, only, strict=True))


@pytest.mark.parametrize("name", [n for n in STAGED if len(ROWS[n].stages) > 1])
def test_intermediates_are_the_raw_stage_outputs(name):
    """The next stage reads the map un-normalised; `norm=True` normalises the last one alone."""
    model = small(name).eval()
    with torch.no_grad():
        tokens, raw = model.forward_intermediates(image(name))
        normed_tokens, normed = model.forward_intermediates(image(name), norm=True)
        fmap = image(name)
        for index, stage in enumerate(model.stages):
            out, grid = stage(fmap)
            fmap = out[:, stage.num_prefix :].transpose(1, 2).unflatten(2, grid)
            assert torch.equal(raw[index], fmap)
    assert torch.equal(tokens, normed_tokens)
    assert all(torch.equal(a, b) for a, b in zip(raw[:-1], normed[:-1], strict=True))
    assert not torch.allclose(raw[-1], normed[-1])
    last = tokens[:, model.num_prefix_tokens :].transpose(1, 2).reshape(normed[-1].shape)
    assert torch.equal(normed[-1], last)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_nlc_is_the_map_as_tokens(name, norm):
    model = small(name).eval()
    with torch.no_grad():
        maps = model.forward_intermediates(image(name), norm=norm, intermediates_only=True)
        rows = model.forward_intermediates(
            image(name), norm=norm, output_fmt="NLC", intermediates_only=True
        )
    for fmap, tokens in zip(maps, rows, strict=True):
        assert torch.equal(tokens, fmap.flatten(2).transpose(1, 2))


def test_indices_and_stop_early():
    model = small("cvt_13").eval()
    ran = []
    for index, stage in enumerate(model.stages):
        stage.embed.register_forward_hook(lambda *_, index=index: ran.append(index))
    with torch.no_grad():
        whole = model.forward_intermediates(image("cvt_13"), intermediates_only=True)
        ran.clear()
        _, (first,) = model.forward_intermediates(image("cvt_13"), indices=[0], stop_early=True)
        assert ran == [0]
        _, last_two = model.forward_intermediates(image("cvt_13"), indices=2)
        _, negative = model.forward_intermediates(image("cvt_13"), indices=[-1])
    assert torch.equal(first, whole[0])
    assert all(torch.equal(a, b) for a, b in zip(last_two, whole[1:], strict=True))
    assert torch.equal(negative[0], whole[2])


def test_another_output_format_is_refused():
    with pytest.raises(cvt.UserError, match="must be 'NCHW' or 'NLC'"):
        small("cvt_13").forward_intermediates(image("cvt_13"), output_fmt="NHWC")


@pytest.mark.parametrize("level", [0, 1, -1])
@pytest.mark.parametrize("name", NAMES)
def test_prune_intermediate_layers(name, level):
    model = small(name).eval()
    with torch.no_grad():
        whole = model.forward_intermediates(image(name), intermediates_only=True)
        level %= len(whole)
        assert model.prune_intermediate_layers([level]) == [level]
        if len(getattr(model.spec, "stages", ())) > 1:
            assert len(model.stages) == level + 1
        else:
            blocks = model.blocks if hasattr(model, "blocks") else model.stages[0].blocks
            assert len(blocks) == level + 1
        assert model.num_classes == 0
        for only in (True, False):
            out = model.forward_intermediates(image(name), indices=[level], intermediates_only=only)
            maps = out if only else out[1]
            assert torch.equal(maps[0], whole[level])
        model(image(name))


def test_prune_keeps_what_is_asked_for():
    model = small("cvt_13")
    assert model.prune_intermediate_layers(2, prune_head=False) == [1, 2]
    assert isinstance(model.norm, torch.nn.LayerNorm)
    assert model(image("cvt_13")).shape == (2, 1000)
    model.prune_intermediate_layers([-1], prune_norm=True)
    assert isinstance(model.norm, torch.nn.Identity)


@pytest.mark.parametrize("size", [(64, 96), (72, 56), (33, 47)], ids=str)
def test_extra_level_is_a_pooled_last_stage(size):
    model = randomise(features("cvt_13", extra_level=True)).eval()
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert model.feature_info.channels() == [64, 192, 384, 384]
    with torch.no_grad():
        *_, third, fourth = model(image("cvt_13", 1, size))
    height, width = third.shape[2:]
    assert fourth.shape[2:] == (-(-height // 2), -(-width // 2))
    for row in range(fourth.shape[2]):
        for column in range(fourth.shape[3]):
            window = third[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(fourth[:, :, row, column], window.amax(dim=(2, 3)))


def test_extra_level_by_index_and_left_out():
    only = features("cvt_13", extra_level=True, out_indices=(3,))
    assert only.feature_info.reduction() == [32]
    assert only(image("cvt_13"))[0].shape == (2, 384, 2, 2)
    without = features("cvt_13", extra_level=True, out_indices=(0, 1, 2))
    assert len(without(image("cvt_13"))) == 3
    tokens, maps = small("cvt_13", extra_level=True).forward_intermediates(image("cvt_13"))
    assert len(maps) == 4
    assert tokens.shape == (2, 17, 384)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_declares_the_levels_that_it_gives(name):
    """One a stage, or one a block where all blocks are in one stage; modules are where they say."""
    model = meta(name).eval()
    stages = getattr(ROWS[name], "stages", ())
    by_block = stages[0].depth if len(stages) == 1 else len(getattr(model, "blocks", ()))
    assert len(model.feature_info) == (by_block or len(stages))
    modules = dict(model.named_modules())
    assert all(level["module"] in modules for level in model.feature_info)
    size = ROWS[name].img_size
    maps = model.forward_intermediates(
        torch.empty(1, 3, *size, device="meta"), intermediates_only=True
    )
    assert [fmap.shape[1] for fmap in maps] == [each["num_chs"] for each in model.feature_info]
    assert [fmap.shape[2] for fmap in maps] == [
        size[0] // each["reduction"] for each in model.feature_info
    ]


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "cpvt_small", "tnt_nano_32"])
def test_blocks_of_one_stage_are_levels(name):
    model = small(name, depth=4).eval()
    whole = model.forward_intermediates(image(name), intermediates_only=True)
    _, some = model.forward_intermediates(image(name), indices=[0, 2], stop_early=True)
    assert len(whole) == 4
    assert all(torch.equal(a, b) for a, b in zip(some, [whole[0], whole[2]], strict=True))
    assert not torch.equal(whole[0], whole[1])
    assert len(features(name, depth=4)(image(name))) == 3


def forms(outcome):
    """What is given, without the numbers: kinds, keys and shapes."""
    if isinstance(outcome, torch.Tensor):
        return tuple(outcome.shape)
    if isinstance(outcome, dict):
        return {key: forms(value) for key, value in outcome.items()}
    return type(outcome), [forms(each) for each in outcome]


@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
@pytest.mark.parametrize("flags", [*itertools.product([False, True], repeat=3)], ids=str)
def test_prefix_tokens_and_dicts_have_the_forms_of_timms_vit(output_fmt, flags):
    name, changes = "vit_tiny_patch16_224", {"depth": 3, "num_classes": 5}
    theirs, ours = timm.create_model(name, **changes), cvt.create_model(name, **changes)
    images = image(name, 1, (224, 224))
    words = ("intermediates_only", "output_dict", "return_prefix_tokens")
    asked = {"indices": [0, 2], "output_fmt": output_fmt, **dict(zip(words, flags, strict=True))}
    with torch.no_grad():
        given = ours.eval().forward_intermediates(images, **asked)
        expected = theirs.eval().forward_intermediates(images, **asked)
    assert forms(given) == forms(expected)


@pytest.mark.parametrize("name", NAMES)
def test_prefix_tokens_stand_beside_their_maps(name):
    model = small(name).eval()
    with torch.no_grad():
        tokens, maps = model.forward_intermediates(image(name), norm=True)
        given = model.forward_intermediates(
            image(name), norm=True, return_prefix_tokens=True, output_dict=True
        )
        pairs = model.forward_intermediates(
            image(name), norm=True, return_prefix_tokens=True, intermediates_only=True
        )
    assert torch.equal(given["image_features"], tokens)
    assert all(map(torch.equal, given["image_intermediates"], maps))
    if not model.num_prefix_tokens:
        assert "image_intermediates_prefix" not in given
        assert all(map(torch.equal, pairs, maps))
        return
    prefixes = given["image_intermediates_prefix"]
    assert torch.equal(prefixes[-1], tokens[:, : model.num_prefix_tokens])
    for fmap, prefix, pair in zip(maps, prefixes, pairs, strict=True):
        assert (prefix.shape[0], prefix.shape[2]) == fmap.shape[:2]
        assert torch.equal(pair[0], fmap)
        assert torch.equal(pair[1], prefix)


def test_a_level_without_a_prefix_gets_an_empty_one():
    model = small("cvt_13", extra_level=True).eval()
    pairs = model.forward_intermediates(
        image("cvt_13"), return_prefix_tokens=True, intermediates_only=True
    )
    assert [prefix.shape[1:] for _, prefix in pairs] == [(0, 64), (0, 192), (1, 384), (0, 384)]
