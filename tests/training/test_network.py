import copy

import pytest
import torch
from torch import nn

from cvt.runtime import World
from cvt.training.config import OptimConfig
from cvt.training.network import ChunkNorms, freeze, set_train_mode
from cvt.training.step import make_optimizer
from cvt.zoo.create import create_model

CHUNKS = 4


@pytest.fixture
def model():
    """Two norms with statistics of their own, in training mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 1.5)
    return model.train()


@pytest.fixture
def chunks():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 3, 6, 6, generator=generator) + number for number in range(CHUNKS)]


def statistics(model) -> torch.Tensor:
    return torch.cat([each.flatten().double() for each in model.buffers()])


def work_through(model, chunks, norms=None, blank_at=()) -> ChunkNorms:
    norms = norms or ChunkNorms(model)
    for number, images in enumerate(chunks):
        if number in blank_at:
            with norms.chunk(counts=False):
                model(torch.full_like(images, 1e3)).sum().backward()
        with norms.chunk(counts=True):
            model(images).sum().backward()
    return norms


def test_statistics_move_by_the_mean_over_the_chunks(model, chunks):
    """Written out: (1 - momentum) * before + momentum * mean of the chunks' own, once a batch."""
    norm, inputs = model[1], [model[0](images) for images in chunks]
    means = torch.stack([each.mean(dim=(0, 2, 3)) for each in inputs]).mean(dim=0)
    variances = torch.stack([each.var(dim=(0, 2, 3)) for each in inputs]).mean(dim=0)
    expected = 0.9 * norm.running_mean + 0.1 * means, 0.9 * norm.running_var + 0.1 * variances
    work_through(model, chunks).combine(World())
    torch.testing.assert_close(norm.running_mean, expected[0])
    torch.testing.assert_close(norm.running_var, expected[1])
    assert norm.num_batches_tracked == 1


def test_one_chunk_is_what_batch_norm_does_itself(model, chunks):
    alone = copy.deepcopy(model)
    for images in chunks:
        alone(images)
        work_through(model, [images]).combine(World())
    assert torch.equal(statistics(model), statistics(alone))
    assert model[1].num_batches_tracked == CHUNKS


def test_every_chunk_starts_from_the_statistics_before_the_batch(model, chunks):
    before = statistics(model)
    work_through(model, chunks)
    assert torch.equal(statistics(model), before)


class Others:
    """A world whose other process's numbers are known already."""

    def __init__(self, theirs=0.0):
        self.theirs, self.mine = theirs, None

    def sum(self, numbers):
        self.mine = numbers.clone()
        return numbers + self.theirs


@pytest.mark.parametrize("shares", [[(0, 2), (1, 3)], [(0, 1, 2), (3,)], [(3, 0), (2, 1)]])
def test_who_works_through_which_chunk_does_not_matter(shares, model, chunks):
    alone, first, second = (copy.deepcopy(model) for _ in range(3))
    work_through(alone, chunks).combine(World())
    shared = work_through(second, [chunks[number] for number in shares[1]])
    heard = Others()
    copy.copy(shared).combine(heard)
    mine = work_through(first, [chunks[number] for number in shares[0]])
    mine.combine(Others(heard.mine))
    torch.testing.assert_close(statistics(first), statistics(alone), rtol=1e-6, atol=1e-6)
    assert first[1].num_batches_tracked == 1


@pytest.mark.parametrize("blank_at", [(0,), (1, 3), range(CHUNKS)])
def test_a_chunk_that_does_not_count_leaves_no_trace(blank_at, model, chunks):
    other = copy.deepcopy(model)
    work_through(model, chunks).combine(World())
    norms = work_through(other, chunks, blank_at=blank_at)
    assert all(layer.training for layer in other.modules())
    norms.combine(World())
    assert torch.equal(statistics(model), statistics(other))


def test_a_batch_of_chunks_that_do_not_count_changes_nothing(model, chunks):
    before, norms = statistics(model), ChunkNorms(model)
    for images in chunks:
        with norms.chunk(counts=False):
            model(images)
    norms.combine(World())
    assert torch.equal(statistics(model), before)
    assert all(layer.training for layer in model.modules())


def test_batches_do_not_remember_one_another(model, chunks):
    """A second batch with the same norms equals one with norms made anew."""
    anew, norms = copy.deepcopy(model), ChunkNorms(model)
    for _ in range(2):
        work_through(model, chunks, norms).combine(World())
        work_through(anew, chunks).combine(World())
    assert torch.equal(statistics(model), statistics(anew))
    assert model[1].num_batches_tracked == 2


def test_frozen_norms_are_left_alone(model, chunks):
    before, norms = statistics(model), ChunkNorms(model)
    set_train_mode(model, "bn")
    work_through(model, chunks, norms).combine(World())
    assert torch.equal(statistics(model), before)
    assert not model[1].training
    assert not model[3].training


def test_one_of_two_norms_may_be_frozen(model, chunks):
    before = model[1].running_mean.clone()
    model[1].eval()
    work_through(model, chunks).combine(World())
    assert torch.equal(model[1].running_mean, before)
    assert model[3].num_batches_tracked == 1


def test_a_network_without_norms_has_nothing_to_combine():
    norms = ChunkNorms(nn.Linear(2, 2))
    with norms.chunk(counts=True):
        pass
    norms.combine(World())


OPTIM = OptimConfig(lr=0.1, min_lr=0.0, weight_decay=0.5, warmup_epochs=0.0, clip_grad=0.0)


@pytest.fixture
def network():
    torch.manual_seed(0)
    tiny = create_model(
        "cvt_nano_32",
        num_classes=4,
        embed_dim=[8, 8, 16],
        depth=[1, 1, 2],
        num_heads=1,
        drop_path_rate=0.5,
        drop_rate=0.5,
    )
    for name, buffer in tiny.named_buffers():  # statistics that say something
        if name.endswith(("running_mean", "running_var")):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return tiny


def moved_by_updates(network, mode):
    """Names of the parameters and buffers that three real updates change."""
    before = copy.deepcopy(network.state_dict())
    optimizer = make_optimizer(network, OPTIM)
    for _ in range(3):
        set_train_mode(network, mode)
        loss = nn.functional.cross_entropy(network(torch.randn(8, 3, 16, 16)), torch.arange(8) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = network.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_none_freezes_nothing(network):
    freeze(network, "none")
    moved = moved_by_updates(network, "none")
    assert moved == set(network.state_dict())
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("times", [1, 2])
def test_batch_norms_stay_as_they_are(network, times):
    for _ in range(times):
        freeze(network, "bn")
    frozen = {name for name in network.state_dict() if ".bn." in name}
    assert len(frozen) == 4 * 3 * 5  # blocks; q, k, v; scale, shift, mean, variance, count
    assert moved_by_updates(network, "bn") == set(network.state_dict()) - frozen
    in_training = {kind for kind in map(type, (m for m in network.modules() if m.training))}
    assert nn.BatchNorm2d not in in_training
    assert nn.LayerNorm in in_training


@pytest.mark.parametrize("times", [1, 2])
def test_only_the_classifier_learns(network, times):
    for _ in range(times):
        freeze(network, "backbone")
    assert moved_by_updates(network, "backbone") == {"head.weight", "head.bias"}
    assert [name for name, each in network.named_modules() if each.training] == ["head"]


def test_frozen_features_are_not_dropped_out(network):
    freeze(network, "backbone")
    set_train_mode(network, "backbone")
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(network(images), network(images))
    set_train_mode(network, "none")
    assert not torch.equal(network(images), network(images))


def test_going_back_from_evaluation_thaws_nothing(network):
    for mode in ("bn", "backbone"):
        freeze(network, mode)
        set_train_mode(network, mode)
        before = [name for name, each in network.named_modules() if each.training]
        network.eval()
        set_train_mode(network, mode)
        assert [name for name, each in network.named_modules() if each.training] == before


def test_batch_norms_over_all_gpus_are_frozen_as_well(network):
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    freeze(network, "bn")
    set_train_mode(network, "bn")
    norms = [each for each in network.modules() if isinstance(each, nn.SyncBatchNorm)]
    assert len(norms) == 4 * 3
    assert not any(each.training or each.weight.requires_grad for each in norms)


def test_what_wraps_a_model_is_looked_through(network):
    freeze(network, "backbone")
    set_train_mode(nn.Sequential(network), "backbone")
    assert [name for name, each in network.named_modules() if each.training] == ["head"]


def test_a_frozen_backbone_still_returns_both_classifiers_logits():
    network = create_model("cvt_nano_32", num_classes=4, depth=1, distilled=True)
    network.set_distilled_training()
    freeze(network, "backbone")
    set_train_mode(network, "backbone")
    logits, dist_logits = network(torch.randn(2, 3, 16, 16))
    assert logits.shape == dist_logits.shape == (2, 4)
    assert not any(each.training for each in network.stages.modules())
    assert {name for name, each in network.named_parameters() if each.requires_grad} == {
        "head.weight", "head.bias", "head_dist.weight", "head_dist.bias"
    }  # fmt: skip
