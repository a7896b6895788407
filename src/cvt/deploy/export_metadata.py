"""What an exported file says about itself: the record of its model, and what images it takes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from cvt.deploy.export_sizes import Sizes
from cvt.errors import UserError
from cvt.weights.checkpoint import METADATA_KEY, record_of
from cvt.weights.record import Record

INPUT_KEY = "cvt_input"
KEYS = (METADATA_KEY, INPUT_KEY)


@dataclass(frozen=True)
class Metadata:
    """What travels with an exported file, as JSON under the keys `cvt` and `cvt_input`.

    Args:
        record: As in a checkpoint: preprocessing (to the size exported), class names, licence, ...
        sizes: The images that the file takes.
        dtype: What it computes in.
    """

    record: Record
    sizes: Sizes
    dtype: str

    def to_strings(self) -> dict[str, str]:
        """Returns the JSON by its keys, in ASCII."""
        about_input = {**self.sizes.to_dict(), "computes_in": self.dtype}
        return {METADATA_KEY: json.dumps(self.record.to_dict()), INPUT_KEY: json.dumps(about_input)}

    @classmethod
    def from_strings(cls, strings: Mapping[str, str], *, source: str) -> Self:
        """Reads what `to_strings` wrote.

        Raises:
            UserError: It is not there, or not usable.
        """
        record = record_of(strings, source=source)
        try:
            plain: dict[str, Any] = json.loads(strings[INPUT_KEY])
            return cls(record, Sizes.from_dict(plain), plain["computes_in"])
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{source} does not say which images it takes, expected a file that `cvt export` "
                "wrote; export it again."
            ) from error
