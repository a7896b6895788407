"""T2T-ViT against numbers that the authors' own code computed, both forms of its token layer."""

from functools import cache

import pytest
import torch

from cvt import Backbone, BackboneSpec
from cvt.parts.position import SinusoidTable
from cvt.systems.t2t import T2T
from cvt.weights.layouts import to_ours
from golden_recipe import check_logits, read_golden, weights

GOLDEN = read_golden("yitu_t2t.json")
CASES = GOLDEN["cases"]
SMALL = ("performer_small", "transformer_small")
FORMS = {"performer": "t2t_vit_7", "transformer": "t2t_vit_t_14"}
TABLE = "stages.2.pos_embed.table"


def spec_of(case: str) -> BackboneSpec:
    facts = CASES[case]
    if "row" in facts:
        row = T2T.rows[facts["row"]]
        return row.change(depth=(0, 0, facts["depth"])) if "depth" in facts else row
    small = facts["spec"]
    return T2T.rows[FORMS[small["tokens_type"]]].change(
        embed_dim=(small["token_dim"], small["token_dim"], small["embed_dim"]),
        depth=(0, 0, small["depth"]),
        num_heads=(1, 1, small["num_heads"]),
        mlp_ratio=small["mlp_ratio"],
        num_classes=small["num_classes"],
        img_size=small["img_size"],
    )


@cache
def tensors_of(case: str) -> dict[str, torch.Tensor]:
    return to_ours(weights(CASES[case]["shapes"]), source=case)


def load(case: str, **changes) -> Backbone:
    """The case's network; where the image size is changed, its table is left as it was made."""
    model = Backbone(spec_of(case).change(**changes)).eval()
    own = {TABLE: model.state_dict()[TABLE]} if changes else {}
    model.load_state_dict({**tensors_of(case), **own})
    return model


@pytest.mark.parametrize("case", CASES)
def test_float32_logits_are_the_authors(case: str) -> None:
    (size, expected), *_ = CASES[case]["sizes"].items()
    check_logits(load(case), size, expected)


@pytest.mark.parametrize("case", SMALL)
def test_float64_agrees_to_ten_digits(case: str) -> None:
    check_logits(load(case).double(), "64x64", CASES[case]["sizes"]["64x64"])


@pytest.mark.parametrize("size", [48, 96])
@pytest.mark.parametrize("case", SMALL)
def test_another_size_has_the_table_that_the_authors_make_of_the_trained_one(
    case: str, size: int
) -> None:
    """Their `resize_pos_embed`, at work in float32 here as there."""
    model = load(case)
    model.set_input_size(size)
    check_logits(model.double(), f"{size}x{size}", CASES[case]["sizes"][f"{size}x{size}"])


@pytest.mark.parametrize("case", SMALL)
def test_a_network_made_for_another_size_has_the_authors_sinusoid(case: str) -> None:
    model = load(case, img_size=96)
    check_logits(model.double(), "96x96", CASES[case]["sinusoid"]["96x96"])


def test_the_sinusoid_is_the_authors() -> None:
    facts = GOLDEN["sinusoid_table"]
    table = SinusoidTable(facts["dim"], (14, 14), 1).table[0]
    assert table.shape[0] == facts["positions"]
    got = table[facts["rows"]][:, facts["columns"]]
    torch.testing.assert_close(got, torch.tensor(facts["values"]), rtol=0, atol=1e-6)


def test_the_published_cases_have_the_rows_names_and_shapes() -> None:
    row = T2T.rows["t2t_vit_7"]
    with torch.device("meta"):
        own = {name: tensor.shape for name, tensor in Backbone(row).state_dict().items()}
    assert own == {name: tensor.shape for name, tensor in tensors_of("t2t_vit_7").items()}


def test_another_scale_would_not_pass() -> None:
    """The numbers tell the stem's scale, that of its incoming width, from one head's."""
    model = load("transformer_small").double()
    model.stages[1].embed.scale = model.spec.stages[1].embed_dim ** -0.5
    with pytest.raises(AssertionError):
        check_logits(model, "64x64", CASES["transformer_small"]["sizes"]["64x64"])
