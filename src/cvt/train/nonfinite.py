"""What is said, and kept, when a loss or a gradient is not a number any more."""

import json
from shlex import quote

from cvt.data import batch_names
from cvt.errors import UserError
from cvt.files import atomic_write
from cvt.train.config import known
from cvt.train.job import Job
from cvt.train.step import NonFinite

REPORT_FILE = "nonfinite.json"


def explained(job: Job, error: NonFinite) -> NonFinite:
    """Returns the error with where it happened, having written the batch's pictures to a file."""
    update, names = job.done_updates + 1, names_of_batch(job)
    path = job.run / REPORT_FILE
    try:
        job.world.on_main(lambda: _write(job, error, update, names))
        listed = f"are named in {path}"
    except UserError as failure:
        listed = f"could not be listed ({str(failure).rstrip('.')})"
    explanation = NonFinite(
        f"Training stopped at update {update} (epoch {job.progress.epoch + 1}, learning rate "
        f"{job.lr:.3g}): {error}; its {len(names)} images ({names[0]}, ...) {listed}, "
        f"and the last good checkpoint is kept in {quote(str(job.run))}; look at them, or start "
        "again with a lower --optim.lr or a lower --optim.clip-grad.",
        loss=error.loss,
        grad_norm=error.grad_norm,
    )
    explanation.is_told_elsewhere = not job.world.is_main
    return explanation


def names_of_batch(job: Job) -> list[str]:
    """Returns the names of the pictures of the batch in hand, those of all processes."""
    return batch_names(
        job.splits.train,
        batch_size=job.batch_size,
        seed=job.config.seed,
        epoch=job.progress.epoch,
        repeats=known(job.config.augment.repeats),
        batch=job.progress.batch,
    )


def _write(job: Job, error: NonFinite, update: int, names: list[str]) -> None:
    with atomic_write(job.run / REPORT_FILE, "w") as file:
        facts = {
            "update": update,
            "epoch": job.progress.epoch + 1,
            "lr": job.lr,
            "loss": str(error.loss),
            "grad_norm": str(error.grad_norm),
            "images": names,
        }
        json.dump(facts, file, indent=1)
