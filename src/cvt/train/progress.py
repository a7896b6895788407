"""How far a run has come: everything but the weights that going on exactly needs."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from cvt.errors import UserError
from cvt.plain import NOT_FINITE, Range, from_plain

_Count = Annotated[int, Range(0, 2**53)]
_Figure = Annotated[float, NOT_FINITE]
_Amount = Annotated[float, Range(0)]


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """A line of `metrics.csv`: losses in nats, top-1 in percent, lr of the epoch's last update.

    `data_wait` is the share of the training time in which there was no batch to work on, 0 to 1;
    `memory_mb` the most memory in use so far, on the GPU if that is where the model is.
    """

    epoch: Annotated[int, Range(1, 2**53)]
    train_loss: _Figure
    val_loss: _Figure
    val_top1: _Figure
    lr: _Figure
    images_per_s: _Figure
    seconds: _Figure
    data_wait: _Figure
    memory_mb: _Figure

    def is_better_than(self, other: "EpochRow | None") -> bool:
        """Whether this epoch's weights are to be kept: higher top-1, or as high with less loss."""
        if other is None:
            return True
        return (self.val_top1, -self.val_loss) > (other.val_top1, -other.val_loss)


@dataclass(kw_only=True)
class Progress:
    """The position in a run, and what has been summed up on the way there.

    Args:
        epoch: The epoch in hand, from 0.
        batch: Batches of it that are done.
        loss_sum: Sum over its pictures of their training loss.
        num_images: Pictures of it that were trained on.
        seconds: Time its updates took, waiting for batches included.
        wait_seconds: The part of that time in which there was no batch to work on.
        bad: A sentence for each picture that could not be read so far.
        history: The finished epochs.
        best: The epoch whose weights are the best so far.
    """

    epoch: _Count = 0
    batch: _Count = 0
    loss_sum: _Figure = 0.0
    num_images: _Count = 0
    seconds: _Amount = 0.0
    wait_seconds: _Amount = 0.0
    bad: list[str] = field(default_factory=list)
    history: list[EpochRow] = field(default_factory=list)
    best: EpochRow | None = None

    def count(self, loss: float, num_images: int, seconds: float, waited: float = 0.0) -> None:
        """Adds an update's pictures with their mean loss, and its time, `waited` a part of it."""
        self.loss_sum += loss * num_images
        self.num_images += num_images
        self.seconds += seconds
        self.wait_seconds += waited

    def note_bad(self, sentences: tuple[str, ...]) -> list[str]:
        """Remembers pictures that could not be read; returns those not known before."""
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self.bad]
        self.bad += new
        return new

    def finish_epoch(
        self, val_loss: float, val_top1: float, lr: float, memory_mb: float
    ) -> EpochRow:
        """Adds the epoch's row to the history and moves on to the start of the next one."""
        row = EpochRow(
            epoch=self.epoch + 1,
            train_loss=self.train_loss,
            val_loss=val_loss,
            val_top1=val_top1,
            lr=lr,
            images_per_s=self.images_per_s,
            seconds=self.seconds,
            data_wait=self.data_wait,
            memory_mb=memory_mb,
        )
        self.history.append(row)
        if row.is_better_than(self.best):
            self.best = row
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.num_images = 0.0, 0
        self.seconds, self.wait_seconds = 0.0, 0.0
        return row

    @property
    def train_loss(self) -> float:
        """Mean training loss of the epoch in hand."""
        return self.loss_sum / max(self.num_images, 1)

    @property
    def images_per_s(self) -> float:
        """Pictures per second that the epoch in hand was trained on."""
        return self.num_images / self.seconds if self.seconds else 0.0

    @property
    def data_wait(self) -> float:
        """Share of the epoch in hand in which there was no batch to work on, 0 to 1."""
        return min(self.wait_seconds / self.seconds, 1.0) if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Any, what: str = "the progress of a run") -> "Progress":
        """Rebuilds what `to_dict` wrote.

        Args:
            what: What a message calls the data.

        Raises:
            UserError: It is of other kinds, or its parts contradict one another.
        """
        progress = from_plain(cls, plain, what)
        numbers = [row.epoch for row in progress.history]
        is_best_known = progress.best in progress.history if numbers else progress.best is None
        if numbers != list(range(1, progress.epoch + 1)) or not is_best_known:
            raise UserError(f"Got {len(numbers)} epochs in {what} that do not go together.")
        return progress
