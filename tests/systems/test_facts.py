"""What the systems say of their rows, counted: parameters, frozen ones, multiply-accumulates."""

import pytest
import torch

import cvt
from cvt.bench.paper.tables import is_rounding
from cvt.parts.model import fixed_tables
from cvt.systems.catalog import ROWS, SYSTEMS, make_network
from cvt.systems.system import Facts, is_ours

FACTS = {name: facts for system in SYSTEMS for name, facts in system.facts.items()}
BASELINES = ("resnet", "efficientnet")


def is_slow(name: str) -> bool:
    return FACTS[name].num_params > 40_000_000 or name.startswith(BASELINES)


CASES = [pytest.param(name, marks=[pytest.mark.slow] if is_slow(name) else []) for name in FACTS]


@pytest.mark.parametrize("name", CASES)
def test_counts(name: str) -> None:
    facts, counted = FACTS[name], cvt.describe(name)
    assert counted.num_params == facts.num_params
    if facts.gmacs is not None:
        assert round(counted.macs / 1e9, 3) == facts.gmacs
    if facts.published_gmacs is not None and not facts.note:
        assert is_rounding(facts.published_gmacs, counted.macs / 1e9)


@pytest.mark.parametrize("name", [name for name in FACTS if not is_slow(name)])
def test_what_is_never_trained(name: str) -> None:
    """Authors keep these as frozen parameters and count them; here they are buffers."""
    with torch.device("meta"):
        model = make_network(ROWS[name])
    assert sum(each.numel() for each in fixed_tables(model).values()) == FACTS[name].num_frozen
    learned = sum(each.numel() for each in model.parameters())
    assert learned + FACTS[name].num_frozen == FACTS[name].num_params
    assert all(each.requires_grad for each in model.parameters())


def differs(facts: Facts) -> bool:
    pairs = (
        (facts.published_params, facts.num_params / 1e6),
        (facts.published_gmacs, facts.gmacs),
    )
    return any(
        published is not None and counted is not None and not is_rounding(published, counted)
        for published, counted in pairs
    )


def test_every_published_figure_that_is_no_rounding_of_the_count_has_a_note() -> None:
    assert {name for name, facts in FACTS.items() if differs(facts) and not facts.note} == set()


def test_every_note_explains_a_difference() -> None:
    assert {name for name, facts in FACTS.items() if facts.note and not differs(facts)} == set()


def test_published_figures_have_a_source() -> None:
    for name, facts in FACTS.items():
        figures = (facts.published_params, facts.published_gmacs, facts.top1)
        assert bool(facts.source) == any(figure is not None for figure in figures), name


def test_every_published_row_has_facts_and_no_facts_lack_a_row() -> None:
    assert FACTS.keys() == {name for name in ROWS if not is_ours(name)}


@pytest.mark.parametrize("kind", ["vit", "deit", "cpvt", "tnt", "t2t", "pvt", "cvt"])
def test_the_small_rows_have_about_half_a_million_parameters(kind: str) -> None:
    assert 350_000 <= cvt.describe(f"{kind}_nano_32").num_params <= 650_000
