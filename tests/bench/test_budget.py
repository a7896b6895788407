import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvt.bench.contest.recipe import Budget, read_budget
from cvt.errors import UserError


@pytest.mark.parametrize(
    ("text", "amount", "unit", "said"),
    [
        ("3epochs", 3, "epochs", "3 epochs"),
        ("3 epochs", 3, "epochs", "3 epochs"),
        ("1epoch", 1, "epochs", "1 epoch"),
        ("0.5 epochs", 0.5, "epochs", "0.5 epochs"),
        ("20000images", 20_000, "images", "20,000 images"),
        ("20,000 images", 20_000, "images", "20,000 images"),
        ("100k images", 100_000, "images", "100,000 images"),
        ("1.5m images", 1_500_000, "images", "1,500,000 images"),
        ("10minutes", 10, "minutes", "10 minutes"),
        ("10min", 10, "minutes", "10 minutes"),
        ("90 s", 1.5, "minutes", "1.5 minutes"),
        ("2H", 120, "minutes", "120 minutes"),
    ],
)
def test_reads(text, amount, unit, said):
    budget = read_budget(text)
    assert budget == Budget(amount=amount, unit=unit)
    assert str(budget) == said
    assert read_budget(budget.short) == budget


@pytest.mark.parametrize("text", ["", "3", "epochs", "three epochs", "-1epochs", "3 days", "3 km"])
def test_what_is_no_budget(text):
    with pytest.raises(UserError, match="expected epochs, images or minutes"):
        read_budget(text)


@pytest.mark.parametrize("text", ["0epochs", "0.0 minutes", "0k images"])
def test_nothing_is_no_budget(text):
    with pytest.raises(UserError, match="more than zero"):
        read_budget(text)


@given(st.integers(1, 1000), st.integers(1, 10_000), st.integers(1, 512))
def test_epochs_are_whole_epochs_and_images_no_more_than_asked(amount, per_epoch, batch_size):
    epochs = Budget(amount=amount, unit="epochs").updates(per_epoch, batch_size)
    assert epochs == amount * per_epoch
    images = Budget(amount=amount * batch_size + batch_size - 1, unit="images")
    assert images.updates(per_epoch, batch_size) == amount


def test_minutes_depend_on_the_pace():
    budget = Budget(amount=2, unit="minutes")
    assert budget.updates(10, 64) is None
    assert budget.updates_at(0.5) == 240
    assert Budget(amount=0.1, unit="minutes").updates_at(0.1) == 60


def test_less_than_an_update_is_refused():
    with pytest.raises(UserError, match="less than one update with 64 images"):
        Budget(amount=63, unit="images").updates(10, 64)
    with pytest.raises(UserError, match="when one takes 61 s"):
        Budget(amount=1, unit="minutes").updates_at(61)
