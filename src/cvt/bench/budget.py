"""How much training each contender gets: epochs, images or minutes."""

import re
from dataclasses import dataclass
from typing import Literal

from cvt.errors import UserError

Unit = Literal["epochs", "images", "minutes"]

# Only images come by the thousand: the m of 10minutes is no million.
_PATTERN = re.compile(r"(\d[\d_,]*(?:\.\d+)?)\s*(?:(k|m)(?=\s*(?:image|picture)))?\s*([a-z]+)")
_UNITS: dict[str, tuple[Unit, float]] = {
    "epoch": ("epochs", 1),
    "image": ("images", 1),
    "picture": ("images", 1),
    "second": ("minutes", 1 / 60),
    "sec": ("minutes", 1 / 60),
    "s": ("minutes", 1 / 60),
    "minute": ("minutes", 1),
    "min": ("minutes", 1),
    "hour": ("minutes", 60),
    "h": ("minutes", 60),
}
_FACTORS = {None: 1, "k": 1_000, "m": 1_000_000}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """An amount of training, the same for all contenders.

    Epochs and images give everyone as many updates of as many images. Minutes give everyone as
    much time in updates, waiting for images included and validation not: how many updates that
    is follows from each contender's pace, which is measured first, because the learning rate has
    to come down within them.
    """

    amount: float
    unit: Unit

    def updates(self, updates_per_epoch: int, batch_size: int) -> int | None:
        """Returns the number of updates, or None where that follows from the pace.

        Raises:
            UserError: It is none.
        """
        if self.unit == "minutes":
            return None
        per_unit = updates_per_epoch if self.unit == "epochs" else 1 / batch_size
        return self._at_least_one(self.amount * per_unit, f"with {batch_size} images each")

    def updates_at(self, seconds_per_update: float) -> int:
        """Returns how many updates of a pace fit into the minutes.

        Raises:
            UserError: Not a single one.
        """
        pace = f"when one takes {seconds_per_update:.2g} s"
        return self._at_least_one(self.amount * 60 / seconds_per_update, pace)

    def _at_least_one(self, updates: float, why: str) -> int:
        if updates < 1:
            raise UserError(
                f"Got a budget of {self}, which is less than one update {why}; give more."
            )
        return int(updates + 1e-9)  # 0.1 * 30 is three, whatever floats say

    def __str__(self) -> str:
        unit = self.unit.removesuffix("s") if self.amount == 1 else self.unit
        return f"{self.amount:,.10g} {unit}"

    @property
    def short(self) -> str:
        """The budget as one word, such as `3epochs`."""
        return f"{self.amount:.10g}{self.unit}"


def read_budget(text: str) -> Budget:
    """Reads `3epochs`, `20000 images`, `100k images`, `10min`, `2h`.

    Raises:
        UserError: It is none of these, or zero.
    """
    match = _PATTERN.fullmatch(text.strip().lower())
    word = match[3] if match else ""
    unit = _UNITS.get(word) or _UNITS.get(word.removesuffix("s"))
    if match is None or unit is None:
        raise UserError(
            f"Got budget {text!r}, expected epochs, images or minutes, as in 3epochs, "
            "20000images or 10minutes."
        )
    amount = float(match[1].replace("_", "").replace(",", "")) * _FACTORS[match[2]] * unit[1]
    if amount <= 0:
        raise UserError(f"Got budget {text!r}, expected more than zero; nothing can learn in it.")
    return Budget(amount=amount, unit=unit[0])
