"""What a bench shows while it works: a line a measurement, and on a terminal a bar over all."""

from cvt.bench.screen import ContestScreen
from cvt.bench.speed_measurement import Measurement
from cvt.train.units import say_memory


class SpeedScreen(ContestScreen):
    """Prints what happens; as the contests' screen, but for the lines."""

    def measured(self, measurement: Measurement) -> None:
        """Prints the line of a measurement."""
        self.done += 1
        self.bar.update(self.task, completed=self.done)
        width = len(str(self.total))
        who = (
            f"[{self.done:>{width}}/{self.total}] {measurement.entrant.label}, "
            f"{measurement.setting.words}"
        )
        if measurement.images_per_s is None:
            self.say(f"{who}: failed: {measurement.error}")
            return
        memory = measurement.memory_mb
        more = "" if memory is None else f", {say_memory(memory)} above the model"
        self.say(f"{who}: {say_rate(measurement.images_per_s)} images/s{more}")

    def left_out(self) -> None:
        """Counts a measurement that is not made, as an earlier one of its kind has failed."""
        self.done += 1
        self.bar.update(self.task, completed=self.done)


def say_rate(rate: float) -> str:
    """Returns a rate with three digits at least: `9.13`, `56.1`, `1,234`."""
    return f"{rate:.2f}" if rate < 10 else f"{rate:.1f}" if rate < 100 else f"{rate:,.0f}"
