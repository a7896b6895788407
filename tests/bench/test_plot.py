from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvt.bench.contest.plot import pareto_front, place_labels, save_plot
from cvt.bench.contest.results import Outcome, Results, Standing
from cvt.bench.names import Contender

points = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=9)


@given(points)
def test_the_front_is_what_nothing_dominates(found):
    def dominates(one, other):
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    front = pareto_front(found)
    assert set(front) == {
        i for i, each in enumerate(found) if not any(dominates(other, each) for other in found)
    }
    assert [found[i] for i in front] == sorted(found[i] for i in front)


@pytest.mark.parametrize("count", [1, 5, 16])
@settings(max_examples=3)
@given(seed=st.integers(0, 1000))
def test_labels_lie_on_no_other_label_and_on_no_point(count, seed):
    from matplotlib.figure import Figure

    random = np.random.default_rng(seed)
    # A grid, shuffled a little: crowded, but with room to be had.
    xs = 10.0 ** (6 + 0.2 * (np.arange(count) % 4) + random.uniform(0, 0.1, count))
    ys = 60 + 8 * (np.arange(count) // 4) + random.uniform(0, 1, count)
    figure = Figure(figsize=(8, 5), dpi=100)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.plot(xs, ys, "o")
    axes.margins(0.15)
    axes.set_xlim(6e5, 1.1e7)
    labels = [f"a_longer_network_{i}" for i in range(count)]
    place_labels(axes, list(zip(xs, ys, strict=True)), [1.0] * count, labels, ["k"] * count)
    figure.canvas.draw()
    texts = [text for text in axes.texts if text.get_text()]
    assert {text.get_text() for text in texts} == set(labels)
    boxes = [text.get_window_extent() for text in texts]
    frame = axes.get_window_extent()
    for box in boxes:
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    for x, y in axes.transData.transform(np.column_stack([xs, ys])):
        assert not any(box.contains(x, y) for box in boxes)


def standing(label, cost, scores):
    return Standing(
        contender=Contender(label=label, model="cvt_nano_32"),
        num_params=cost,
        macs=10 * cost,
        runs=tuple(Outcome(label=label, seed=i, top1=top1) for i, top1 in enumerate(scores)),
    )


def results(*standings):
    facts = {"data": "digits", "classes": 10, "split": "test", "budget": "3 epochs", "seeds": 2,
             "image_size": 16, "batch_size": 64, "device": "cpu"}  # fmt: skip
    return Results(standings=standings, facts=facts)


def test_a_picture_is_drawn_of_what_was_finished(tmp_path):
    path = tmp_path / "accuracy.png"
    save_plot(path, results(standing("a", 1000, ())))
    assert not path.exists()
    save_plot(path, results(standing("a", 1000, (80.0,)), standing("b" * 60, 2000, (81.0, 83.0))))
    with Image.open(path) as image:
        assert image.width == 1950
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10
