"""One line of what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from cvt.bench.speed_case import Entrant, Setting


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one process came to; `speed_measure.measure` says what the figures are.

    Args:
        round: From 1.
        images_per_s: None where it failed.
        agreement: For how many of `judged_on` pictures it names the class that float32 does, in %.
        logit_error: The mean error of its logits, in units of their spread.
        load: The machine's load average over the minute before, its own last process included.
        date: When it began, in UTC.
        error: What went wrong, if it failed.
    """

    task: str
    device: str
    threads: int
    image_size: int
    batch_size: int
    model: str
    form: str
    dtype: str
    round: int
    images_per_s: float | None = None
    calls: int | None = None
    prepare_s: float | None = None
    first_call_s: float | None = None
    memory_mb: float | None = None
    peak_gflops: float | None = None
    agreement: float | None = None
    logit_error: float | None = None
    judged_on: int | None = None
    load: float | None = None
    date: str = ""
    error: str = ""

    @property
    def setting(self) -> Setting:
        """In which setting."""
        return Setting(
            task=self.task,
            device=self.device,
            threads=self.threads,
            image_size=self.image_size,
            batch_size=self.batch_size,
        )

    @property
    def entrant(self) -> Entrant:
        """Who."""
        return Entrant(model=self.model, form=self.form, dtype=self.dtype)

    @property
    def is_finished(self) -> bool:
        """Whether it went well."""
        return self.images_per_s is not None


def is_whole(
    measured: Sequence[Measurement], setting: Setting, entrants: Sequence[Entrant], round_: int
) -> bool:
    """Whether a round in a setting has everyone, but for those that have failed there already."""
    there = [each for each in measured if each.setting == setting]
    of_round = {each.entrant for each in there if each.round == round_}
    failed = {each.entrant for each in there if not each.is_finished}
    return all(each in of_round | failed for each in entrants)
