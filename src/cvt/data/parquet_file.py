"""One parquet file in the image layout of the Hugging Face `datasets` library."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cvt.data.image import open_image
from cvt.data.image_set import ImageSet
from cvt.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


@dataclass(frozen=True, kw_only=True)
class ParquetRows:
    """The two columns of a file that matter.

    Args:
        images: Structs of `bytes` and, perhaps, `path`, as pyarrow holds them.
        labels: Class names or whole numbers.
        class_names: The names of the numbers, as far as the file's metadata knows them.
    """

    file: Path
    images: "pa.ChunkedArray"
    labels: list[str | int | None]
    class_names: tuple[str, ...] | None


class ParquetSet(ImageSet):
    """Pictures kept in memory in their compressed form, decoded one at a time.

    Args:
        labels: Position of each row's class in `classes`, shape (N,).
    """

    def __init__(self, rows: ParquetRows, labels: np.ndarray, classes: Sequence[str]) -> None:
        self.rows = rows
        self.labels = labels
        self.classes = tuple(classes)

    def name(self, index: int) -> str:
        return f"{self.rows.file.name} row {index}"

    def image(self, index: int) -> Image.Image:
        cell = self.rows.images[index].as_py() or {}
        if cell.get("bytes") is None and cell.get("path"):
            return open_image(self.rows.file.parent / cell["path"], name=self.name(index))
        return open_image(cell.get("bytes") or b"", name=self.name(index))


def read_parquet(file: Path) -> ParquetRows:
    """Reads labels and compressed pictures of a file with columns `image` and `label`.

    Raises:
        UserError: pyarrow is missing, the file is truncated or not parquet, or a column is missing
            or of another kind.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(
            "Reading parquet files needs pyarrow; install it with: pip install 'cvt[parquet]'."
        ) from None
    try:
        schema = pq.read_schema(file)
        image_column = _pick(schema.names, IMAGE_COLUMNS, file)
        label_column = _pick(schema.names, LABEL_COLUMNS, file)
        table = pq.read_table(file, columns=[image_column, label_column], partitioning=None)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(f"Cannot read {file} as parquet ({reason}); fetch it again.") from error
    images, labels = table.column(image_column), table.column(label_column)
    if not pa.types.is_struct(images.type) or images.type.get_field_index("bytes") < 0:
        raise UserError(
            f"The column {image_column!r} of {file} is of type {images.type}, expected a struct "
            "of bytes and path, as the datasets library writes it."
        )
    if not (pa.types.is_integer(labels.type) or pa.types.is_string(labels.type)):
        raise UserError(
            f"The column {label_column!r} of {file} is of type {labels.type}, expected whole "
            "numbers or strings."
        )
    return ParquetRows(
        file=file,
        images=images,
        labels=labels.to_pylist(),
        class_names=_class_names(schema.metadata or {}, label_column),
    )


def _pick(present: list[str], wanted: tuple[str, ...], file: Path) -> str:
    for name in wanted:
        if name in present:
            return name
    raise UserError(
        f"{file} has the columns {', '.join(present)}, expected one called {wanted[0]}; rename it."
    )


def _class_names(metadata: dict[bytes, bytes], column: str) -> tuple[str, ...] | None:
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(column, {}).get("names")
    return tuple(map(str, names)) if names else None
