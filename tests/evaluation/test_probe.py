import numpy as np
import pytest
import torch

import cvt
from clouds import cloud
from cvt.data import BadImage, DataSplits, eval_transform, load_data
from cvt.errors import UserError
from cvt.evaluation import (
    Batching,
    ModelUnderTest,
    extract,
    knn_votes,
    preprocessing_of,
    probe,
)
from cvt.runtime import World
from randomise import randomise


@pytest.mark.parametrize("k", [1, 7, 60])
def test_neighbours_vote_as_written_out(k):
    train, test = cloud(0), cloud(1)
    votes = knn_votes(train, test.vectors, 6, k)
    for vector, shares in zip(test.vectors, votes, strict=True):
        similarity = [
            vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)
            for other in train.vectors
        ]
        expected = np.zeros(6)
        for index in sorted(range(60), key=lambda index: -similarity[index])[:k]:
            expected[train.labels[index]] += np.exp(similarity[index] / 0.07)
        assert shares == pytest.approx(expected / expected.sum(), abs=1e-4)


def test_more_neighbours_than_images_are_all_of_them():
    train, test = cloud(0, count=5), cloud(1)
    assert (knn_votes(train, test.vectors, 4, 20) == knn_votes(train, test.vectors, 4, 5)).all()


@pytest.fixture(scope="module")
def digits():
    """Two hundred digits to learn from, a hundred each to choose and to report by."""
    whole = load_data("digits")
    parts = {"train": (whole.train, 200), "val": (whole.val, 100), "test": (whole.test, 100)}
    return DataSplits(
        name="few digits",
        **{name: each.subset(np.arange(count)) for name, (each, count) in parts.items()},
    )


@pytest.fixture
def network():
    torch.manual_seed(0)
    return cvt.create_model("cvt_nano_32", in_chans=1, img_size=16, depth=1, embed_dim=[8, 16, 32],
                            num_heads=1, num_classes=3)  # fmt: skip


def test_features_of_an_untrained_network_beat_chance(digits, network):
    sizes, stages = [], []
    before = {name: each.clone() for name, each in network.state_dict().items()}
    result = probe(network, digits, on_start=sizes.append, on_stage=stages.append)
    assert [(each.method, each.split) for each in result.scores] == [
        ("knn", "val"), ("knn", "test"), ("linear", "val"), ("linear", "test"),
    ]  # fmt: skip
    assert all(40 < each.top1 < each.top5 for each in result.scores)
    assert all(each.num_images == 100 for each in result.scores)
    assert (result.num_train, result.num_features, result.bad) == (200, 32, ())
    assert sizes == [200, 100, 100]
    assert stages[:3] == ["features of train", "features of val", "features of test"]
    assert network.training  # as it was
    assert all(each.equal(before[name]) for name, each in network.state_dict().items())


def test_features_are_those_of_the_classifier_with_frozen_batch_norm(digits, network):
    randomise(network).train()
    found = extract(ModelUnderTest(network, Batching(batch_size=7), World()), digits.test)
    image = eval_transform(preprocessing_of(network))(digits.test.image(8))
    network.eval()
    network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    seen = []
    network(image[None])
    assert found.vectors[8] == pytest.approx(seen[0][0].detach().numpy(), abs=1e-5)


def test_a_split_that_is_not_there_is_left_out_and_bad_images_are_named(digits, network):
    class Torn(type(digits.val)):
        def image(self, index, sizing=None):
            if index == 3:
                raise BadImage("number 3 is torn.")
            return super().image(index, sizing)

    torn = Torn(digits.val, np.arange(50))
    splits = DataSplits(name="torn", train=digits.train, val=torn)
    result = probe(network, splits, method="knn", k=1000)
    (score,) = result.scores
    assert (score.split, score.num_images, score.setting) == ("val", 49, {"k": 200})
    assert result.bad == ("number 3 is torn.",)
    # With all images as neighbours, every class gets votes.
    assert score.top5 is not None


def test_a_class_without_votes_is_no_answer(digits, network):
    (one,) = probe(
        network, DataSplits(name="few", train=digits.train, val=digits.val), method="knn", k=1
    ).scores
    assert one.top5 == one.top1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"method": "liner"}, "Did you mean 'linear'"), ({"k": 0}, "Got k 0, expected 1 or more")],
)
def test_mistakes_are_one_sentence(digits, network, arguments, words):
    with pytest.raises(UserError, match=words):
        probe(network, digits, **arguments)
