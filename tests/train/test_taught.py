"""Runs with a teacher: alone and together, stopped and resumed, and what is refused."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch

import cvt
from cvt.errors import UserError
from cvt.train.config import DistillConfig, OptimConfig, TrainConfig
from cvt.train.loop import train
from cvt.train.setup import prepare
from cvt.train.world import ALONE
from cvt.weights.checkpoint import load_checkpoint, save_checkpoint
from processes import in_processes
from stored import stored_facts
from trained import Event, differences, farthest, session

STOP = Event("cvt.train.loop.train_step", 5)  # in the second epoch
TINY_MODEL = {
    "embed_dim": [8, 8, 16],
    "depth": [1, 1, 2],
    "num_heads": [1, 1, 2],
    "embed_stride": [2, 2, 1],
}


@pytest.fixture(scope="module")
def teacher(tiny_run, tmp_path_factory):
    """The folder of a run whose network teaches; it saw its pictures normalised otherwise."""
    run = session(tiny_run(tmp_path_factory.mktemp("teacher"), epochs=1)).result.run
    tensors, record = load_checkpoint(run / "best.safetensors")
    seen = replace(record.preprocessing, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    save_checkpoint(run / "best.safetensors", tensors, replace(record, preprocessing=seen))
    return run


@pytest.fixture(scope="module")
def run_of(tiny_run, teacher):
    """`run_of(out, **changes)`: a distilled student under every kind of randomness, averaged."""
    return partial(
        tiny_run,
        teacher=str(teacher),
        model_args={**TINY_MODEL, "distilled": True},
        ema_decay=0.9,
        accum_steps=2,
    )


@pytest.fixture(scope="module")
def whole(run_of, tmp_path_factory):
    """The folder of the run without an interruption."""
    return session(run_of(tmp_path_factory.mktemp("whole"))).result.run


@pytest.fixture(scope="module")
def cut(run_of, tmp_path_factory):
    """The folder of that run, stopped in its second epoch."""
    out = tmp_path_factory.mktemp("cut")
    assert session(run_of(out), STOP).error == "Interrupted"
    return out


@pytest.fixture
def cut_again(cut, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(cut, tmp_path / "again")


def test_resumed_is_the_same_run(whole, cut_again):
    assert session(TrainConfig(resume=str(cut_again))).result
    assert differences(whole, cut_again) == []


def test_two_processes_are_one_that_accumulates(whole, run_of, tmp_path):
    in_processes(2, session, run_of(tmp_path / "two", accum_steps=1))
    assert differences(whole, tmp_path / "two") == []


def test_recomputing_is_the_same_run_to_rounding(run_of, tmp_path):
    runs = []
    for again in (False, True):
        optim = OptimConfig(opt="sgd", lr=0.1, warmup_epochs=0.0)
        config = run_of(tmp_path / str(again), epochs=1, optim=optim, grad_checkpointing=again)
        runs.append(session(config).result.run)
    assert farthest(*runs, "model.") < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("change", ["compile", "fsdp"])
def test_compiled_or_shared_out_is_the_same_run_to_rounding(change, run_of, tmp_path):
    optim = OptimConfig(opt="sgd", lr=0.1, warmup_epochs=0.0)
    config = run_of(tmp_path / "plain", epochs=1, optim=optim, ema_decay=0.0)
    plain = session(config).result.run
    if change == "fsdp":
        shared = replace(config, out=str(tmp_path / "fsdp"), accum_steps=1, parallel="fsdp")
        in_processes(2, session, shared)
    else:
        eager = partial(torch.compile, backend="eager")
        compiled = replace(config, out=str(tmp_path / "compile"), compile=True)
        try:
            ended = session(compiled, patches={"cvt.train.network.torch.compile": eager})
        finally:
            torch.compiler.reset()
        assert ended.result, ended.text
    assert farthest(plain, tmp_path / change, "model.") < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(precision, run_of, tmp_path):
    optim = OptimConfig(opt="sgd", lr=0.1, warmup_epochs=0.0)
    runs = [
        session(run_of(tmp_path / each, epochs=1, optim=optim, precision=each)).result.run
        for each in ("float32", precision)
    ]
    assert 1e-5 < farthest(*runs, "model.") < 0.1


def test_what_a_run_keeps_is_measured_by_the_mean_of_both_classifiers(whole, tiny_folder):
    from cvt.evaluate import evaluate

    measured = evaluate(str(whole), str(tiny_folder), split="test", device="cpu")
    model = cvt.load(whole)
    images = torch.randn(2, 3, 16, 16)
    head, head_dist = model.get_classifier()
    tokens = model.forward_features(images)
    expected = (head(tokens[:, 0]) + head_dist(tokens[:, 1])) / 2
    torch.testing.assert_close(model(images), expected)
    assert f"{measured.top1:.2f}" in (whole / "README.md").read_text()


def test_the_teacher_reaches_its_own_classifier_only(run_of, tmp_path):
    """With all of the loss its own, the labels' classifier learns nothing."""
    config = run_of(tmp_path / "run", distill=DistillConfig(alpha=1.0), accum_steps=1)
    optim = OptimConfig(opt="sgd", lr=1.0, warmup_epochs=0.0, weight_decay=0.0)
    job = prepare(replace(config, optim=optim), ALONE)
    model = job.network.model.train()
    out = model(torch.randn(4, 3, 16, 16))
    assert len(out) == 2
    taught = job.step.teacher(torch.randn(4, 3, 16, 16))
    job.loss_fn(out, torch.tensor([0, 1, 0, 1]), taught).backward()
    head, head_dist = model.get_classifier()
    assert head.weight.grad.abs().max() == 0
    assert head_dist.weight.grad.abs().max() > 0
    assert "hard distillation into a classifier of its own" in job.describe()


def test_a_student_without_a_token_is_taught_too(run_of, tmp_path):
    config = run_of(tmp_path / "run", model_args=TINY_MODEL, epochs=1)
    soft = replace(config, out=str(tmp_path / "soft"), distill=DistillConfig(kind="soft", tau=3.0))
    none = replace(config, out=str(tmp_path / "none"), teacher=None)
    runs = [session(each).result.run for each in (config, soft, none)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert farthest(runs[one], runs[other], "model.") > 1e-6
    assert "the only classifier" in prepare(replace(config, out=str(tmp_path / "x")), ALONE).describe()  # fmt: skip # noqa: E501


def test_without_a_teacher_both_classifiers_learn_from_the_labels(run_of, tmp_path):
    """As any network does: their mean is what is compared with the label."""
    job = prepare(run_of(tmp_path / "run", teacher=None), ALONE)
    out = job.network.model.train()(torch.randn(4, 3, 16, 16))
    assert out.shape == (4, 2)
    job.loss_fn(out, torch.tensor([0, 1, 0, 1])).backward()
    head, head_dist = job.network.model.get_classifier()
    assert torch.equal(head.weight.grad.isfinite(), head_dist.weight.grad != 0)


def test_probing_a_frozen_student_has_both_classifiers_taught(run_of, whole, tmp_path):
    config = run_of(tmp_path / "probe", model_args={}, weights=str(whole), freeze="backbone")
    config = replace(config, epochs=1, ema_decay=0.0, drop_path_rate=None, model=None)
    assert (ended := session(config)).result, ended.text
    before, _ = load_checkpoint(whole / "best.safetensors")
    after, _ = load_checkpoint(tmp_path / "probe" / "last.safetensors")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_kind_none_asks_no_teacher(run_of, tmp_path):
    config = run_of(tmp_path / "run", teacher="nowhere", distill=DistillConfig(kind="none"))
    job = prepare(config, ALONE)
    assert job.step.teacher is None
    assert job.identity.teacher == []
    assert "aught" not in job.describe()


def test_what_is_kept_names_the_teacher(whole, teacher):
    facts = stored_facts(whole)
    assert facts["config"]["teacher"] == str(teacher)
    assert facts["config"]["distill"] == {"kind": "hard", "alpha": 0.5, "tau": 1.0}
    name, digest = facts["identity"]["teacher"]
    assert name == str(teacher)
    assert len(digest) == 64
    card = (whole / "README.md").read_text()
    assert f"taught by `{teacher}` (hard distillation)" in card
    assert "| `distill.alpha` | `0.5` |" in card


def test_another_teacher_is_not_the_same_run(cut_again, teacher, tmp_path):
    other = shutil.copytree(teacher, tmp_path / "other")
    resumed = TrainConfig(resume=str(cut_again), teacher=str(other))
    with pytest.raises(UserError, match=rf"Got teacher '{other}', but the run to resume was"):
        train(resumed, progress=False)


def test_a_teacher_that_was_trained_on_is_not_the_same(run_of, whole, teacher, tmp_path):
    mine = shutil.copytree(teacher, tmp_path / "mine")
    out = tmp_path / "run"
    assert session(run_of(out, teacher=str(mine)), STOP).error == "Interrupted"
    tensors, record = load_checkpoint(mine / "best.safetensors")
    tensors["head.bias"] = tensors["head.bias"] + 1e-3
    save_checkpoint(mine / "best.safetensors", tensors, record)
    with pytest.raises(UserError, match=rf"the teacher is {mine} with other weights; .* --force"):
        train(TrainConfig(resume=str(out)), progress=False)
    assert session(TrainConfig(resume=str(out), force=True)).result
    assert stored_facts(out)["identity"]["teacher"] != stored_facts(whole)["identity"]["teacher"]


def test_a_run_without_one_gets_none_later(tiny_run, teacher, tmp_path):
    out = tmp_path / "run"
    assert session(tiny_run(out), STOP).error == "Interrupted"
    with pytest.raises(UserError, match=r"Got teacher .* started with None"):
        train(TrainConfig(resume=str(out), teacher=str(teacher)), progress=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": "nowhere/none.pth"}, "There is no file nowhere/none.pth"),
        ({"teacher": "demo"}, "the teacher demo with 10 classes for data with 2, expected as many"),
        ({"teacher_args": {"num_classes": 2}}, "Got teacher_args num_classes"),
        ({"teacher_args": {"in_chans": 1}}, "does not take the student's images of 3x16x16"),
        (
            {"teacher": None, "distill": DistillConfig(kind="soft", tau=2.0)},
            r"Got distill.kind soft and distill.tau 2.0 without a teacher .* --teacher",
        ),
    ],
)
def test_a_mistake_leaves_no_folder_behind(changes, words, run_of, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        train(run_of(tmp_path / "run", **changes), progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_names_of_classes_that_differ_are_told_before_it_begins(run_of, teacher, tmp_path):
    other = shutil.copytree(teacher, tmp_path / "other")
    tensors, record = load_checkpoint(other / "best.safetensors")
    record = replace(record, class_names=("bright", "night"))
    save_checkpoint(other / "best.safetensors", tensors, record)
    job = prepare(run_of(tmp_path / "run", teacher=str(other)), ALONE)
    (note,) = job.notes
    assert "calls its classes otherwise (class 1 is 'night' to it and 'dark' in the data)" in note
