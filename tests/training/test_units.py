import pytest

from cvt.training.screen import say_count, say_memory, say_time


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (8040, "2 h 14 min"),
        (86_399, "1 d 0 h"),
        (266_400, "3 d 2 h"),
    ],
)
def test_times(seconds, said):
    assert say_time(seconds) == said


def test_sizes():
    assert [say_memory(size) for size in (0, 999.4, 1000, 81_920)] == [
        "0 MB",
        "999 MB",
        "1.0 GB",
        "80.0 GB",
    ]
    assert [say_count(number) for number in (950, 12_345, 3_800_000, 2e9)] == [
        "950",
        "12.3 k",
        "3.8 M",
        "2.0 G",
    ]
