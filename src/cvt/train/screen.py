"""What a run shows while it works: a bar on a terminal, plain lines anywhere else."""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cvt.train.config import TrainConfig
from cvt.train.progress import EpochRow


class Screen:
    """Prints the config, a line an epoch, and on a terminal a bar over all updates.

    Args:
        total: Updates of the whole run.
        done: Updates made before, in a run that goes on.
        shown: False keeps all of it quiet.
    """

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self.console = Console(quiet=not shown, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not (shown and self.console.is_terminal),
        )
        self.task = self.bar.add_task("starting", total=total, completed=done, figures="")

    def __enter__(self) -> "Screen":
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Prints a line as it is."""
        self.console.print(escape(text), soft_wrap=True)

    def describe(self, config: TrainConfig, facts: str) -> None:
        """Prints what the run is about to do, derived values included."""
        self.say(facts)
        table = Table.grid(padding=(0, 2))
        for group, values in _groups(config.to_dict()).items():
            said = [f"{name} {value}" for name, value in values.items() if value is not None]
            table.add_row("", group, escape(", ".join(said)))
        self.console.print(table)

    def update(self, epoch: str, loss: float, lr: float, images_per_s: float) -> None:
        """Moves the bar by one update."""
        figures = f"loss {loss:.3f}  lr {lr:.1e}  {images_per_s:,.0f} images/s"
        self.bar.update(self.task, advance=1, description=f"epoch {epoch}", figures=figures)

    def epoch(self, row: EpochRow, epochs: int, is_best: bool) -> None:
        """Prints the line of a finished epoch; a star marks the best so far."""
        width = len(str(epochs))
        self.say(
            f"epoch {row.epoch:>{width}}/{epochs}  train loss {row.train_loss:.4f}  "
            f"val loss {row.val_loss:.4f}  top-1 {row.val_top1:6.2f} %{' *' if is_best else '  '}  "
            f"lr {row.lr:.1e}  {row.images_per_s:,.0f} images/s"
        )


def _groups(plain: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Sorts a config's fields into the groups that it nests, and `run` for those on top."""
    nested = {name: plain[name] for name in ("optim", "augment", "mix")}
    top = {name: value for name, value in plain.items() if name not in nested}
    return {"run": top, **nested}
