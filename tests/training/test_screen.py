import io
import sys
from dataclasses import fields, replace

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from cvt.training import screen as screen_module
from cvt.training.config import DistillConfig, TrainConfig
from cvt.training.defaults import DataFacts, derive
from cvt.training.run_folder import EpochRow
from cvt.training.screen import Screen, config_lines, flat, say_count, say_memory, say_time
from streams import lost_stream
from trained import config_of

ROW = EpochRow(
    epoch=7, train_loss=1.25, val_loss=0.75, val_top1=81.5, lr=1e-3, images_per_s=2345.6,
    seconds=9.0, data_wait=0.04, memory_mb=2048.0,
)  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """`clock(5)` lets five seconds go by."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


@pytest.fixture
def terminal(monkeypatch):
    """`terminal(100)`: what is then written to a terminal of that width."""

    def make(width):
        out = io.StringIO()

        def console(file, **options):
            return Console(file=out, force_terminal=True, width=width, **options)

        monkeypatch.setattr(screen_module, "Console", console)
        return out

    return make


def test_an_epoch_is_a_line(capsys):
    screen = Screen(100, 0, True)
    screen.epoch(ROW, 300, is_best=True)
    screen.epoch(replace(ROW, epoch=8), 300, is_best=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "epoch   7/300  train loss 1.2500  val loss 0.7500  top-1  81.50 % *  lr 1.0e-03  "
        "2,346 images/s  2.0 GB"
    )
    assert second == first.replace("7/300", "8/300").replace(" *", "  ")


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("name", ["photos", "写真の長い名前" * 9, "a name with blanks " * 7])
def test_lines_fit_a_terminal_and_no_word_is_broken(terminal, width, name):
    """Names stay with their values; a word wider than the terminal is the one exception."""
    facts = f"{name}: 12 training and 3 validation images, 5 classes. cvt_nano_32 on cpu."
    config = derive(
        {"data": name, "out": f"runs/{name}"},
        DataFacts(name=name, num_images=3000, median_side=400),
        torch.device("cpu"),
    )
    out = terminal(width)
    screen = Screen(10, 0, True)
    screen.describe(config, facts)
    screen.epoch(ROW, 300, is_best=True)
    screen.epoch(ROW, 300, is_best=False)
    lines = out.getvalue().splitlines()
    words = " ".join(lines).split()
    said = " ".join([facts, *config_lines(config).values()]).split()
    assert set(said) <= set(words)
    for line in lines:
        assert line == line.rstrip()
        assert cell_len(line) <= width or max(map(cell_len, line.split())) > width - 11
    for pair in ("weight_decay 0.05", "scale [0.35, 1]", "warmup_epochs 2", "batch_size 32"):
        assert any(pair in line for line in lines)
    used = max(map(cell_len, lines))
    assert used > 0.8 * width, "the room is used"


def test_where_there_is_no_terminal_a_line_is_a_line(capsys):
    name = "a name with blanks " * 20
    config = config_of(data=name, batch_size=4)
    screen = Screen(10, 0, True)
    screen.describe(config, name)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == name
    assert len(lines) == 1 + len(config_lines(config))
    assert all(line == line.rstrip() for line in lines[1:])


def test_the_closing_report_keeps_its_lines(terminal, capsys):
    text = "\nDone.\n\n  " + "word " * 40 + "\nan\x1bescape"
    out = terminal(40)
    Screen(10, 0, True).report(text)
    assert out.getvalue() == text.replace("\x1b", "\\x1b") + "\n"


@pytest.mark.parametrize(
    ("workers", "words"),
    [(0, "more workers may help (--num-workers, now 0 on 4 cores)"), (4, "4 workers keep all 4")],
)
def test_waiting_for_data_is_said_once_with_what_to_do(capsys, monkeypatch, workers, words):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    screen = Screen(100, 0, True)
    screen.describe(config_of(num_workers=workers, device="cuda:0"), "facts")
    capsys.readouterr()
    screen.epoch(replace(ROW, data_wait=0.1), 300, is_best=True)
    assert capsys.readouterr().out.count("\n") == 1
    screen.epoch(replace(ROW, data_wait=0.34), 300, is_best=True)
    out = capsys.readouterr().out
    assert "34% of the training time went by waiting" in out
    assert words in out
    screen.epoch(replace(ROW, data_wait=0.34), 300, is_best=True)
    assert capsys.readouterr().out.count("\n") == 1


def test_a_cpu_has_no_cores_for_more_workers(capsys):
    screen = Screen(100, 0, True)
    screen.describe(config_of(num_workers=0, device="cpu"), "facts")
    capsys.readouterr()
    screen.epoch(replace(ROW, data_wait=0.34), 300, is_best=True)
    assert capsys.readouterr().out.count("\n") == 1


def test_another_number_of_updates_is_said_where_it_is_quite_another(capsys):
    screen = Screen(1000, 0, True)
    for total in (900, 1100, 700, 710, 1200):
        screen.replan(total, 100)
    assert capsys.readouterr().out.splitlines() == [
        "This goes slower than thought: 700 updates in all, not 1,000.",
        "This goes quicker than thought: 1,200 updates in all, not 700.",
    ]


def test_a_log_shows_a_line_every_five_minutes(capsys, clock):
    screen = Screen(1000, 0, True)
    screen.describe(config_of(device="cuda:0"), "facts")
    capsys.readouterr()
    with screen:
        for _ in range(100):
            clock(10)
            screen.update("1/3", 2.0, 1e-3, 500.0, data_wait=0.5, memory_mb=100.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] == (
        "epoch 1/3  2 h 42 min left  loss 2.000  500 images/s  waits for data 50%  lr 1.0e-03  "
        "100 MB"
    )


def test_time_left_is_the_session_s_own_pace(capsys, clock):
    screen = Screen(1000, 900, True)
    for seconds in (400, 3, 3, 294 + 6):  # the first is slow; validation is part of the pace
        clock(seconds)
        screen.update("9/10", 2.0, 1e-3, 500.0)
    first, second = capsys.readouterr().out.splitlines()
    assert "epoch 9/10  - left" in first
    assert "2 h 43 min left" in second  # 96 updates at 306 s / 3


def test_a_terminal_has_a_bar_with_what_fits(terminal):
    widths = {}
    for width in (140, 70):
        out = terminal(width)
        with Screen(10, 0, True) as screen:
            screen.describe(config_of(device="cuda:0"), "facts")
            for _ in range(3):
                screen.update("1/3", 2.0, 1e-3, 500.0, data_wait=0.5, memory_mb=100.0)
        widths[width] = out.getvalue()
    for text in ("epoch 1/3", "loss 2.000", "500 images/s", "left"):
        assert text in widths[140]
        assert text in widths[70]
    for text in ("waits for data 50%", "lr 1.0e-03", "100 MB"):
        assert text in widths[140]
    assert "100 MB" not in widths[70]
    assert "…" not in widths[70]
    assert "lr 1.0e-03" not in widths[70]


def test_other_processes_are_quiet(capsys, terminal):
    out = terminal(100)
    with Screen(10, 0, False) as screen:
        screen.describe(config_of(), "facts")
        screen.update("1/3", 2.0, 1e-3, 500.0)
        screen.epoch(replace(ROW, data_wait=0.9), 300, is_best=True)
        screen.say("anything")
    assert out.getvalue() == ""
    assert capsys.readouterr().out == ""


def test_names_are_printed_as_they_are(capsys):
    screen = Screen(10, 0, True)
    screen.say("skipped: [bold]a.png[/bold]")
    screen.describe(config_of(data="[red]photos"), "facts")
    out = capsys.readouterr().out
    assert "[bold]a.png[/bold]" in out
    assert "[red]photos" in out


@pytest.mark.parametrize("kind", ["full", "closed"])
def test_output_that_is_lost_ends_nothing(monkeypatch, kind):
    with lost_stream(kind) as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with Screen(10, 0, True) as screen:
            for _ in range(300):
                screen.say("x" * 100)
            screen.epoch(ROW, 300, is_best=True)


def test_letters_that_the_output_lacks_are_escaped(monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(content, encoding="cp1252"))
    Screen(10, 0, True).say("skipped: 猫.png")
    sys.stdout.flush()
    assert content.getvalue().split() == [b"skipped:", b"\\u732b.png"]


@pytest.mark.parametrize("name", [":car:", "[bold]x[/]", "[/]", "{x}", r"\[red]"])
def test_names_are_said_as_they_are(capsys, terminal, name):
    Screen(10, 0, True).say(name)
    assert capsys.readouterr().out == name + "\n"
    out = terminal(80)
    with Screen(10, 0, True) as screen:
        screen.update(f"1/2 {name}", 1.0, 0.1, 10.0)
        screen.say(name)
    assert name in out.getvalue()


CONFIG = config_of(
    data="torch/cifar10",
    model="cvt_mini_32",
    model_args={"kv_stride": 1, "depth": [1, 2, 4]},
    epochs=300,
    batch_size=256,
    num_workers=0,
    optim={
        "base_lr": 1e-3,
        "min_lr": 5e-6,
        "weight_decay": 0.0,
        "warmup_epochs": 0,
        "clip_grad": 0,
    },
    augment={"crop": "pad", "scale": (0.1, 1.0), "hflip": 0.5},
    mix={"mixup": 0.2},
)


def test_values_in_use_come_with_what_they_were_derived_from():
    lines = config_lines(CONFIG)
    assert lines["model"] == "cvt_mini_32, model_args kv_stride=1 depth=[1, 2, 4]"
    assert "batch_size 256, image_size 16, seed 0" in lines["length"]
    assert lines["optim"] == (
        "opt adamw, lr 0.0005 = 0.001 * 256 / 512, min_lr 5e-06; "
        "off: weight_decay, warmup_epochs, clip_grad"
    )
    assert lines["mix"] == "mixup 0.2, smoothing 0.1, loss ce; off: cutmix"
    assert "num_workers 0" in lines["machine"]


def test_what_nothing_reads_is_not_said():
    lines = config_lines(CONFIG)
    assert lines["augment"] == "crop pad, hflip 0.5; off: color_jitter, auto_augment, re_prob"
    assert "momentum" not in lines["optim"]
    assert "parallel" not in lines["machine"]
    assert "compile" not in lines["machine"]
    cropped = replace(CONFIG, augment=replace(CONFIG.augment, crop="random_resized", re_prob=0.25))
    assert "scale [0.1, 1]" in config_lines(cropped)["augment"]
    assert "re_mode pixel" in config_lines(cropped)["augment"]


def test_a_rate_that_was_given_is_not_said_to_be_derived():
    given = replace(CONFIG, optim=replace(CONFIG.optim, lr=0.25))
    assert "lr 0.25, " in config_lines(given)["optim"]


def test_several_processes_and_steps_share_the_batch():
    shared = replace(CONFIG, accum_steps=4, compile=True, sync_bn=True)
    lines = config_lines(shared, processes=2)
    assert "batch_size 256 = 2 processes * 4 steps * 32 images" in lines["length"]
    assert "parallel ddp, num_workers 0, compile, sync_bn" in lines["machine"]


def test_no_field_gets_lost():
    """Whatever is switched on is said, fields that are yet to be added included."""
    usual = config_of()
    lines = "\n".join(config_lines(usual, processes=2).values())
    for each in fields(TrainConfig):
        value = getattr(usual, each.name)
        if isinstance(value, int | float | str) and value not in (
            0,
            False,
            "none",
            "fresh",
            "digits",
        ):
            assert each.name in lines or each.name == "accum_steps" or str(value) in lines
    on = {
        each.name: True
        for each in fields(TrainConfig)
        if getattr(usual, each.name) is False and each.name not in ("force", "download", "fast")
    }
    lines = "\n".join(config_lines(replace(usual, **on), processes=2).values())
    assert [name for name in on if name not in lines] == []


def test_a_fast_run_says_what_it_reads_and_nothing_else():
    fast = {"weights": "w", "freeze": "backbone", "head": "probed", "fast": True, "updates": 1}
    lines = config_lines(replace(config_of(), **fast))
    assert lines["model"] == "cvt_nano_32, weights w, fast"
    assert lines["length"].startswith("batch_size 64, image_size 16, seed 0")
    assert lines["augment"] == "off: hflip"
    assert not {"optim", "mix"} & lines.keys()


def test_a_teacher_is_said_with_what_is_read_of_it():
    hard = DistillConfig(kind="hard", alpha=0.5, tau=1.0)
    taught = replace(CONFIG, teacher="timm/resnet18", teacher_args={"in_chans": 1}, distill=hard)
    lines = config_lines(taught)
    assert lines["teacher"] == "timm/resnet18, teacher_args in_chans=1"
    assert lines["distill"] == "kind hard, alpha 0.5"
    soft = replace(taught, distill=replace(hard, kind="soft"))
    assert config_lines(soft)["distill"] == "kind soft, alpha 0.5, tau 1"
    for alone in (CONFIG, replace(taught, distill=replace(hard, kind="none"))):
        assert not {"teacher", "distill"} & config_lines(alone).keys()


def test_flat_names_are_those_of_the_command_line():
    plain = flat(CONFIG.to_dict())
    assert plain["optim.base_lr"] == 1e-3
    assert plain["model_args"] == {"kv_stride": 1, "depth": [1, 2, 4]}
    assert not {"optim", "augment", "mix"} & set(plain)


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
    assert [say_memory(size) for size in (0, 999.4, 81_920)] == ["0 MB", "999 MB", "80.0 GB"]
    assert [say_count(number) for number in (950, 12_345, 2e9)] == ["950", "12.3 k", "2.0 G"]
