"""TNT: exact counts, timm's arithmetic on randomised weights, and which token hears which."""

import copy
import json
from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch.export import Dim, export
from torch.utils.flop_counter import FlopCounterMode

from cvt.errors import UserError
from cvt.parts.spec import BackboneSpec, StageSpec, TNTSpec
from cvt.parts.tnt import TNT
from cvt.systems import tnt
from randomise import randomise

NUM_PARAMS = {"tnt_s_patch16_224": 23_768_584, "tnt_b_patch16_224": 65_428_680}
PAPER_ROWS = tuple(NUM_PARAMS)
TIMM, AUTHORS = tnt.TNT.layouts

# One small network, in our words and in timm's; 12 words by 3x4 would hide nothing a 4x4 shows.
SMALL = TNTSpec(
    embed_dim=48, depth=3, num_heads=6, inner_dim=12, inner_heads=4, img_size=64, num_classes=10
)
TIMM_SMALL = {"embed_dim": 48, "depth": 3, "num_heads_outer": 6, "inner_dim": 12}


def small(**changes) -> TNT:
    return randomise(TNT(SMALL.change(**changes))).eval()


@cache
def judge(name: str, **changes) -> torch.nn.Module:
    """timm's network, randomised; its tables, too, at the scale of the tokens they are added to."""
    model = randomise(timm.create_model(name, **changes)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for table in (model.patch_pos, model.pixel_pos):
            table.copy_(torch.randn(table.shape, generator=generator))
    return model


def judge_at(model: torch.nn.Module, size: tuple[int, int], name: str, **changes):
    """timm's network for another image size, which it fixes when built, with the same weights."""
    table = model.patch_pos.detach()
    other = timm.create_model(name, **changes, img_size=size).eval().to(table.dtype)
    old, new = list(model.pixel_embed.grid_size), list(other.pixel_embed.grid_size)
    if table.dtype == torch.float64:  # timm's own function would round it to float32
        fmap = table[:, 1:].transpose(1, 2).unflatten(2, old)
        fmap = F.interpolate(fmap, size=new, mode="bicubic", antialias=True)
        table = torch.cat((table[:, :1], fmap.flatten(2).transpose(1, 2)), dim=1)
    else:
        table = resample_abs_pos_embed(table, new, old)
    other.load_state_dict({**model.state_dict(), "patch_pos": table})
    return other


def ours_of(model: torch.nn.Module, spec: TNTSpec) -> TNT:
    ours = TNT(spec).eval().to(next(model.parameters()).dtype)
    ours.load_state_dict(TIMM.to_ours(model.state_dict()))
    return ours


def assert_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """To a tolerance relative to the largest number, as rounding errors spread."""
    assert expected.std() > 0.1  # equality of numbers near zero would show nothing
    scale = max(expected.abs().max().item(), 1.0)
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * scale)


def random_images(*size: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *size, generator=generator)


@pytest.mark.parametrize("name", PAPER_ROWS)
def test_counts_are_exact(name):
    spec, facts = tnt.TNT.rows[name], tnt.TNT.facts[name]
    with torch.device("meta"):
        model = TNT(spec).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, 224, 224))
    num_params = sum(parameter.numel() for parameter in model.parameters())
    assert num_params == facts.num_params == NUM_PARAMS[name]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert round(counter.get_total_flops() / 2e9, 3) == facts.gmacs
    # The authors' parameters include one row for each patch that nothing reads.
    (grid,) = spec.grids(spec.img_size)
    unused = grid[0] * grid[1] * spec.embed_dim
    assert round((num_params + unused) / 1e6, 1) == facts.published_params
    assert (f"{unused:,}" in facts.note) == (round(num_params / 1e6, 1) != facts.published_params)


def test_our_own_small_row():
    spec = tnt.TNT.rows["tnt_nano_32"]
    with torch.device("meta"):
        num_params = sum(parameter.numel() for parameter in TNT(spec).parameters())
    assert 450_000 < num_params < 600_000
    assert spec.grids((32, 32)) == [(8, 8)]
    assert spec.word_grid == (2, 2)


@pytest.mark.parametrize("name", PAPER_ROWS)
def test_logits_are_timms_at_the_trained_size(name):
    theirs = judge(name, depth=2)
    ours = ours_of(theirs, tnt.TNT.rows[name].change(depth=2))
    images = random_images(224, 224, batch=1)
    with torch.no_grad():
        assert_close(ours(images), theirs(images), 1e-5)


@pytest.mark.parametrize("size", [(96, 64), (160, 240), (107, 75)], ids=str)
@pytest.mark.parametrize("name", PAPER_ROWS)
def test_logits_are_timms_at_other_sizes(name, size):
    """The last is no multiple of a patch: both leave the rest out."""
    theirs = judge(name, depth=2)
    ours = ours_of(theirs, tnt.TNT.rows[name].change(depth=2))
    with torch.no_grad():
        expected = judge_at(theirs, size, name, depth=2)(random_images(*size))
        assert_close(ours(random_images(*size)), expected, 1e-5)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (70, 33)], ids=str)
@pytest.mark.parametrize("pool", ["token", "avg", ""])
def test_float64_agrees_to_ten_digits(size, pool):
    name, changes = PAPER_ROWS[0], {**TIMM_SMALL, "num_classes": 10, "global_pool": pool}
    theirs = copy.deepcopy(judge(name, **changes, img_size=64)).double()
    ours = ours_of(theirs, SMALL.change(global_pool=pool))
    images = random_images(*size).double()
    with torch.no_grad():
        expected = judge_at(theirs, size, name, **changes)(images)
        assert_close(ours(images), expected, 1e-10)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
@pytest.mark.parametrize("indices", [None, 2, [0], [-1, 0]], ids=str)
def test_intermediates_are_timms(norm, output_fmt, indices):
    theirs = judge(PAPER_ROWS[0], **TIMM_SMALL, img_size=(48, 80), num_classes=10)
    ours = ours_of(theirs, SMALL.change(img_size=(48, 80)))
    options = {"indices": indices, "norm": norm, "output_fmt": output_fmt}
    with torch.no_grad():
        tokens, maps = ours.forward_intermediates(random_images(48, 80), **options)
        wanted_tokens, wanted = theirs.forward_intermediates(random_images(48, 80), **options)
        (*_, last) = ours.forward_intermediates(
            random_images(48, 80), **options, stop_early=True, intermediates_only=True
        )
    assert_close(tokens, wanted_tokens, 1e-5)
    assert torch.equal(last, maps[-1])
    for got, expected in zip(maps, wanted, strict=True):
        assert_close(got, expected, 1e-5)


def test_feature_info_is_timms():
    with torch.device("meta"):
        for name in PAPER_ROWS:
            theirs = timm.create_model(name, depth=3).feature_info
            assert TNT(tnt.TNT.rows[name].change(depth=3)).feature_info == theirs


def test_pruned_blocks_leave_the_maps_as_they_are():
    model = small()
    with torch.no_grad():
        whole = model.forward_intermediates(random_images(64, 64), intermediates_only=True)
        assert model.prune_intermediate_layers([1], prune_norm=True) == [1]
        assert (len(model.blocks), model.num_classes) == (2, 0)
        (kept,) = model.forward_intermediates(random_images(64, 64), [1], intermediates_only=True)
    assert torch.equal(kept, whole[1])
    assert not [key for key in model.state_dict() if key.startswith(("norm", "head"))]


def test_words_stay_in_their_patch_and_patches_hear_all():
    """Words hear the words of their own patch only, and never the outer stream."""
    model = small().double()
    streams: list[tuple[torch.Tensor, torch.Tensor]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, outputs: streams.append(outputs))
    before = random_images(64, 64, batch=1).double()
    after = before.clone()
    after[:, :, 31, 16] += 1  # a corner of patch 5 of 4x4, beside patches 4, 8 and 9
    with torch.no_grad():
        model(before)
        model(after)
    others = [index for index in range(16) if index != 5]
    for (words, tokens), (changed, heard) in zip(streams[:3], streams[3:], strict=True):
        assert torch.equal(words[others], changed[others])
        assert (words[5] != changed[5]).any(dim=1).all()
        assert (tokens != heard).any(dim=2).all()


def test_a_patch_is_embedded_as_if_it_were_the_whole_image():
    """The convolution pads at each patch's border instead of reading over it."""
    embed = small().double().word_embed
    images = random_images(48, 32).double()
    with torch.no_grad():
        words, grid = embed(images)
        assert grid == (3, 2)
        for number in range(6):
            row, column = divmod(number, 2)
            patch = images[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            alone, _ = embed(patch)
            torch.testing.assert_close(words.unflatten(0, (2, 6))[:, number], alone)


def test_without_the_patches_table_their_order_is_lost():
    model = small().double()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    images = random_images(64, 64).double()
    cut = images.unfold(2, 16, 16).unfold(3, 16, 16).flatten(2, 3)[:, :, order]
    shuffled = cut.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(images.shape)
    with torch.no_grad():
        assert (model(images) - model(shuffled)).abs().max() > 1e-3
        model.pos_embed.table.zero_()
        tokens = model.forward_features(images)
        moved = model.forward_features(shuffled)
    torch.testing.assert_close(moved[:, 1:], tokens[:, 1:][:, order], rtol=0, atol=1e-10)
    torch.testing.assert_close(moved[:, 0], tokens[:, 0], rtol=0, atol=1e-10)


def test_what_is_left_over_of_an_image_is_not_read():
    model = small()
    with torch.no_grad():
        whole = model(random_images(79, 70)[:, :, :64, :64])
        assert torch.equal(model(random_images(79, 70)), whole)


@pytest.mark.parametrize("depth", [1, 3])
def test_stochastic_depth_climbs_over_the_whole_depth_in_both_streams(depth):
    model = TNT(SMALL.change(depth=depth, drop_path_rate=0.3))
    expected = [0.0, 0.15, 0.3][:depth]
    for stream in ("inner", "outer"):
        blocks = [getattr(block, stream) for block in model.blocks]
        for branch in ("drop_path1", "drop_path2"):
            rates = [getattr(getattr(each, branch), "drop_prob", 0.0) for each in blocks]
            assert rates == pytest.approx(expected)


def test_drop_out_rates_reach_their_places():
    model = TNT(SMALL.change(pos_drop_rate=0.1, proj_drop_rate=0.2, attn_drop_rate=0.3))
    assert model.pos_drop.p == 0.1
    for block in model.blocks:
        for each in (block.inner, block.outer):
            assert (each.attn.proj_drop.p, each.attn.attn_drop.p) == (0.2, 0.3)
            assert (each.mlp.drop1.p, each.mlp.drop2.p) == (0.2, 0.2)
    assert TNT(SMALL.change(drop_rate=0.4)).head_drop.p == 0.4


def test_initial_weights_are_the_reference_s():
    torch.manual_seed(0)
    model = TNT(SMALL.change(embed_dim=96))
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and not name.startswith("word_embed"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif not name.startswith("word_embed"):
            assert 0.01 < parameter.std() < 0.03, name


def test_another_input_size_for_good():
    model = small()
    with torch.no_grad():
        expected = model(random_images(96, 48))
        model.set_input_size((96, 48))
        assert torch.equal(model(random_images(96, 48)), expected)
    assert model.pos_embed.table.shape == (1, 1 + 6 * 3, 48)
    assert model.spec.img_size == (96, 48)
    again = TNT(TNTSpec.from_dict(model.spec.to_dict()))
    again.load_state_dict(model.state_dict())
    with pytest.raises(UserError, match="smallest side is 16 pixels"):
        model.set_input_size((96, 15))
    assert model.spec.img_size == (96, 48)


def test_export_with_dynamic_sizes():
    model = small(depth=1).double()
    free = {0: Dim("batch"), 2: Dim.AUTO, 3: Dim.AUTO}
    exported = export(model, (random_images(64, 80).double(),), dynamic_shapes=(free,)).module()
    with torch.no_grad():
        for batch, size in [(1, (64, 48)), (3, (51, 97))]:
            images = random_images(*size, batch=batch).double()
            torch.testing.assert_close(exported(images), model(images), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", tnt.TNT.rows)
def test_a_row_goes_to_json_and_back(name):
    spec = tnt.TNT.rows[name]
    plain = json.loads(json.dumps(spec.to_dict()))
    assert plain["kind"] == "tnt"
    assert TNTSpec.from_dict(plain) == spec


def test_plain_data_is_read_strictly():
    plain = SMALL.to_dict()
    with pytest.raises(UserError, match=r"'iner_dim'.*'inner_dim'"):
        TNTSpec.from_dict({**plain, "iner_dim": 12})
    with pytest.raises(UserError, match="'baseline', expected 'tnt'"):
        TNTSpec.from_dict({**plain, "kind": "baseline"})
    for name in ("embed_dim", "depth", "num_heads", "inner_dim", "inner_heads"):
        with pytest.raises(UserError, match=f"There is no '{name}' in the spec"):
            TNTSpec.from_dict({key: value for key, value in plain.items() if key != name})


def test_change_refuses_a_field_of_another_kind():
    with pytest.raises(UserError, match=r"'inner_head'.*'inner_heads'"):
        SMALL.change(inner_head=2)
    with pytest.raises(UserError, match="Unknown field 'kv_stride'"):
        SMALL.change(kv_stride=2)
    assert SMALL.change(img_size=96).img_size == (96, 96)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("embed_dim", 0),
        ("embed_dim", 50),
        ("depth", 0),
        ("depth", 1.5),
        ("num_heads", True),
        ("inner_dim", 10),
        ("inner_heads", 5),
        ("patch_size", (16, 16)),
        ("inner_kernel", 4),
        ("inner_stride", 0),
        ("mlp_ratio", 0),
        ("norm_eps", -1e-5),
        ("qkv_bias", 1),
        ("act_layer", "geluu"),
        ("global_pool", "max"),
        ("num_classes", -1),
        ("in_chans", 0),
        ("img_size", (0, 8)),
        ("drop_path_rate", 1.5),
        ("pos_drop_rate", "0.1"),
    ],
)
def test_a_wrong_value_is_refused_by_name(field, value):
    with pytest.raises(UserError, match=field):
        SMALL.change(**{field: value})


def test_images_without_a_whole_patch_are_refused():
    assert SMALL.min_size == 16
    assert SMALL.grids((16, 47)) == [(1, 2)]
    model = small()
    with pytest.raises(UserError, match=r"15x64 pixels is too small.*smallest side is 16 pixels"):
        model(random_images(15, 64))
    with pytest.raises(UserError, match=r"expected \(batch, 3, height, width\)"):
        model(random_images(64, 64)[:, :1])
    with pytest.raises(UserError, match="too small"):
        TNT(SMALL.change(img_size=(8, 64)))


@pytest.mark.parametrize("side", range(1, 20))
@pytest.mark.parametrize(("kernel", "stride"), [(7, 4), (3, 2), (1, 3), (5, 1)])
def test_the_grid_of_words_is_the_one_that_torch_makes(side, kernel, stride):
    spec = SMALL.change(patch_size=side, inner_kernel=kernel, inner_stride=stride)
    conv = torch.nn.Conv2d(1, 1, kernel, stride, kernel // 2, device="meta")
    assert tuple(conv(torch.empty(1, 1, side, side, device="meta")).shape[2:]) == spec.word_grid


def test_other_networks_know_nothing_of_it():
    """Two streams are squeezed neither into a stage nor into a row of stages."""
    own = {"inner_dim", "inner_heads", "inner_kernel", "inner_stride", "patch_size"}
    for spec in (StageSpec, BackboneSpec):
        assert not own & set(spec.__dataclass_fields__)
