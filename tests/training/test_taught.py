"""Runs with a teacher: alone and together, stopped and resumed, and what is refused."""

import shutil
from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
import torch

import cvt
from cvt import train
from cvt.errors import UserError
from cvt.runtime import ALONE, seed_position
from cvt.training.defaults import said
from cvt.training.network import set_train_mode
from cvt.training.setup import Run, prepare
from cvt.training.step import StepResult, train_step
from cvt.weights.checkpoint import load_checkpoint, save_checkpoint
from processes import in_processes
from stored import stored_facts
from trained import TINY_MODEL, Event, differences, farthest, session

pytestmark = pytest.mark.usefixtures("undrawn")

STOP = Event("cvt.training.loop.train_step", 5)  # in the second epoch


@pytest.fixture(scope="module")
def teacher(tiny_run, tmp_path_factory):
    """The folder of a run whose network teaches; it saw its images normalised otherwise."""
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
    assert session({"resume": str(cut_again)}).result
    assert differences(whole, cut_again) == []


def test_two_processes_are_one_that_accumulates(whole, run_of, tmp_path):
    in_processes(2, session, run_of(tmp_path / "two", accum_steps=1))
    assert differences(whole, tmp_path / "two") == []


def prepared(settings: dict) -> Run:
    return prepare(said(settings, "the settings"), ALONE)


def first_update(config: dict) -> tuple[Run, StepResult]:
    """A run's first update, and the run after it."""
    job = prepared(config)
    set_train_mode(job.network.model, job.config.freeze)
    chunks = [
        (each.images, each.labels) for each in islice(job.train_loader(), config["accum_steps"])
    ]
    job.set_lr(0)
    seed = partial(seed_position, 0)
    step = train_step(job.network.forward, chunks, job.loss_fn, job.optimizer, job.step, seed)
    return job, step


@pytest.mark.parametrize(
    ("changes", "rel"),
    [
        ({"grad_checkpointing": True}, 1e-5),
        ({"channels_last": True}, 1e-5),
        ({"precision": "bf16"}, 0.05),
        ({"precision": "fp16"}, 0.05),
    ],
)
def test_speedups_are_the_same_update_or_near_it(changes, rel, run_of, tmp_path):
    _, plain = first_update(run_of(tmp_path / "plain"))
    _, quick = first_update(run_of(tmp_path / "quick", **changes))
    assert quick.loss == pytest.approx(plain.loss, rel=rel)
    assert quick.grad_norm == pytest.approx(plain.grad_norm, rel=4 * rel)
    if "precision" in changes:
        assert quick.loss != plain.loss


@pytest.mark.slow
@pytest.mark.parametrize("change", ["compile", "fsdp"])
def test_compiled_or_shared_out_is_the_same_run_to_rounding(change, run_of, tmp_path):
    optim = {"opt": "sgd", "lr": 0.1, "warmup_epochs": 0.0}
    config = run_of(tmp_path / "plain", epochs=1, optim=optim, ema_decay=0.0)
    plain = session(config).result.run
    if change == "fsdp":
        shared = {**config, "out": str(tmp_path / "fsdp"), "accum_steps": 1, "parallel": "fsdp"}
        in_processes(2, session, shared)
    else:
        eager = partial(torch.compile, backend="eager")
        compiled = {**config, "out": str(tmp_path / "compile"), "compile": True}
        try:
            ended = session(compiled, patches={"cvt.training.network.torch.compile": eager})
        finally:
            torch.compiler.reset()
        assert ended.result, ended.text
    assert farthest(plain, tmp_path / change, "model.") < 1e-5


def test_what_a_run_keeps_is_measured_by_the_mean_of_both_classifiers(whole, tiny_folder):
    from cvt.evaluation import evaluate

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
    config = run_of(tmp_path / "run", distill={"alpha": 1.0}, accum_steps=1)
    optim = {"opt": "sgd", "lr": 1.0, "warmup_epochs": 0.0, "weight_decay": 0.0}
    job = prepared({**config, "optim": optim})
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
    losses = []
    for name, changes in {
        "hard": {},
        "soft": {"distill": {"kind": "soft", "tau": 3.0}},
        "none": {"distill": {"kind": "none"}},
        "alone": {"teacher": None},
    }.items():
        config = run_of(tmp_path / name, model_args=TINY_MODEL, **changes)
        job, step = first_update(config)
        losses.append(step.loss)
        assert ("the only classifier" in job.describe()) == (name in ("hard", "soft"))
    assert losses[2] == losses[3]
    assert len(set(losses)) == 3


def test_without_a_teacher_both_classifiers_learn_from_the_labels(run_of, tmp_path):
    """As any network does: their mean is what is compared with the label."""
    job = prepared(run_of(tmp_path / "run", teacher=None))
    out = job.network.model.train()(torch.randn(4, 3, 16, 16))
    assert out.shape == (4, 2)
    job.loss_fn(out, torch.tensor([0, 1, 0, 1])).backward()
    head, head_dist = job.network.model.get_classifier()
    assert torch.equal(head.weight.grad.isfinite(), head_dist.weight.grad != 0)


def test_probing_a_frozen_student_has_both_classifiers_taught(run_of, whole, tmp_path):
    config = run_of(tmp_path / "probe", model_args={}, weights=str(whole), freeze="backbone")
    job, _ = first_update({**config, "drop_path_rate": None, "model": None})
    before, _ = load_checkpoint(whole / "best.safetensors")
    after = job.network.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_kind_none_asks_no_teacher(run_of, tmp_path):
    config = run_of(tmp_path / "run", teacher="nowhere", distill={"kind": "none"})
    job = prepared(config)
    assert job.step.teacher is None
    assert job.identity.teacher == ()
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
    resumed = {"resume": str(cut_again), "teacher": str(other)}
    with pytest.raises(UserError, match=rf"Got teacher '{other}', but the run to resume was"):
        train(**resumed, progress=False)


def test_a_teacher_that_was_trained_on_is_not_the_same(cut_again, teacher):
    path = teacher / "best.safetensors"
    kept = path.read_bytes()
    tensors, record = load_checkpoint(path)
    tensors["head.bias"] = tensors["head.bias"] + 1e-3
    save_checkpoint(path, tensors, record)
    try:
        with pytest.raises(
            UserError, match=rf"the teacher is {teacher} with other weights; .* --force"
        ):
            train(resume=str(cut_again), progress=False)
        forced = prepared({"resume": str(cut_again), "force": True})
    finally:
        path.write_bytes(kept)
    stored = stored_facts(cut_again)["identity"]["teacher"]
    assert forced.identity.teacher[0] == stored[0]
    assert forced.identity.teacher[1] != stored[1]


def test_one_cannot_come_or_go_later(cut_again, teacher, tmp_path):
    alone = shutil.copytree(teacher, tmp_path / "alone")
    with pytest.raises(UserError, match=r"Got teacher .* started with None"):
        train(resume=str(alone), teacher=str(teacher), progress=False)
    gone = {"resume": str(cut_again), "distill": {"kind": "none"}}
    with pytest.raises(UserError, match=r"Got distill.kind 'none', .* started with 'hard'"):
        train(**gone, progress=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": "nowhere/none.pth"}, "There is no file nowhere/none.pth"),
        (
            {"teacher": "demo"},
            "the teacher demo with 200 classes for data with 2, expected",
        ),
        ({"teacher_args": {"num_classes": 2}}, "Got teacher_args num_classes"),
        ({"teacher_args": {"in_chans": 1}}, "does not take the student's images of 3x16x16"),
        (
            {"teacher": None, "distill": {"kind": "soft", "tau": 2.0}},
            r"Got distill.kind soft and distill.tau 2.0 without a teacher .* --teacher",
        ),
    ],
)
def test_a_mistake_leaves_no_folder_behind(changes, words, run_of, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        train(**run_of(tmp_path / "run", **changes), progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_names_of_classes_that_differ_are_told_before_it_begins(run_of, teacher, tmp_path):
    other = shutil.copytree(teacher, tmp_path / "other")
    tensors, record = load_checkpoint(other / "best.safetensors")
    record = replace(record, class_names=("bright", "night"))
    save_checkpoint(other / "best.safetensors", tensors, record)
    job = prepared(run_of(tmp_path / "run", teacher=str(other)))
    (note,) = job.notes
    assert "calls its classes otherwise (class 1 is 'night' to it and 'dark' in the data)" in note
