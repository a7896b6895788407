"""Parquet files in the image layout of the Hugging Face `datasets` library, one or a folder."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cvt.data.image import BadImage, ImageSource
from cvt.data.labels import BadLabel, Classes, Label, as_label, classes_of, declared_classes
from cvt.data.sets import ImageSet, RowSet, labelled_splits, located
from cvt.data.sources import SPLIT_OF_NAME
from cvt.errors import UserError, first_line
from cvt.files import file_inside
from cvt.plain import read_json

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MOST_GROWTH = 16
"""Times its size that the images of a file may take in memory, once they take over a gibibyte."""

_MOST_IN_MEMORY = 2**30
# Bytes of one text in the file's own description.
_OPTIONS: Any = {"pre_buffer": False, "thrift_string_size_limit": 64 * 2**20}
_MOST_BATCH_BYTES, _MOST_BATCH = 2**28, 64


@dataclass(frozen=True, kw_only=True)
class ParquetRows:
    """The two columns of a file that matter.

    Args:
        images: Structs of `bytes` and perhaps `path`, as pyarrow holds them.
        class_names: The names of the numbers, if the file's metadata has them.
    """

    file: Path
    images: "pa.ChunkedArray"
    labels: list[Label | BadLabel]
    class_names: tuple[str, ...] | None


def read_parquet(file: Path) -> ParquetRows:
    """Reads labels and compressed images of a file with columns `image` and `label`."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(
            "Reading parquet files needs pyarrow; install it with: pip install 'cvt[parquet]'."
        ) from None
    if not os.path.isfile(file):  # a pipe would be waited for
        raise UserError(f"Got {file} as a parquet file, and it is none; check the path.")
    try:
        with pq.ParquetFile(file, **_OPTIONS) as opened:
            return _read_rows(opened, file)
    except UserError:
        raise
    except Exception as error:  # a damaged file makes pyarrow raise nearly anything
        raise UserError(
            f"Cannot read {file} as parquet ({first_line(error)}); fetch it again."
        ) from error


def _read_rows(opened: "pq.ParquetFile", file: Path) -> ParquetRows:
    import pyarrow as pa

    schema = opened.schema_arrow
    image_column = _pick(schema.names, ("image", "img"), file)
    label_column = _pick(schema.names, ("label", "labels", "fine_label"), file)
    parts = _image_parts(schema.field(image_column), file)
    _check_labels(schema.field(label_column), file)
    class_names = _class_names(schema.metadata or {}, label_column, file)
    size = os.path.getsize(file)
    if opened.metadata.num_rows > size:
        raise UserError(
            f"{file} tells of {opened.metadata.num_rows:,} rows in {size:,} bytes; fetch it again."
        )
    images: list[pa.Array] = []
    labels: list[Label | BadLabel] = []
    held = 0
    for batch in _batches(opened, [*parts, label_column], file):
        images.append(batch.column(image_column))
        labels += map(as_label, batch.column(label_column).to_pylist())
        held += images[-1].nbytes
        if held > max(_MOST_IN_MEMORY, MOST_GROWTH * size):
            raise UserError(
                f"The images in {file} take more than a gibibyte and {MOST_GROWTH} times its size "
                "in memory; write them one by one as JPEG or PNG files."
            )
    chunks = pa.chunked_array(images, schema.field(image_column).type if not images else None)
    return ParquetRows(file=file, images=chunks, labels=labels, class_names=class_names)


def _batches(
    opened: "pq.ParquetFile", columns: list[str], file: Path
) -> Iterator["pa.RecordBatch"]:
    """Reads so few rows at a time that a value stored once and repeated in each fits in memory."""
    import pyarrow.parquet as pq

    leaves = [opened.schema.column(number) for number in range(len(opened.schema))]
    texts = [each.path for each in leaves if each.physical_type == "BYTE_ARRAY"]
    with pq.ParquetFile(file, read_dictionary=texts, **_OPTIONS) as peek:
        for group in range(opened.num_row_groups):
            first = next(peek.iter_batches(1, [group], columns), None)
            if first is not None:
                size = max(map(_stored_once, first.columns))
                count = max(1, min(_MOST_BATCH, _MOST_BATCH_BYTES // (size + 1)))
                yield from opened.iter_batches(count, [group], columns)


def _stored_once(column: "pa.Array") -> int:
    """Returns the bytes of the distinct values of a column; no row has more."""
    import pyarrow as pa

    if isinstance(column, pa.StructArray):
        return max(map(_stored_once, column.flatten()), default=0)
    return column.dictionary.nbytes if isinstance(column, pa.DictionaryArray) else 0


def _pick(present: list[str], wanted: tuple[str, ...], file: Path) -> str:
    for name in wanted:
        if present.count(name) == 1:
            return name
        if name in present:
            raise UserError(f"{file} has two columns called {name}; rename one.")
    raise UserError(
        f"{file} has the columns {', '.join(present)}, expected one called {wanted[0]}; rename it."
    )


_BYTES = ("binary", "large_binary", "binary_view", "null")
_TEXT = ("string", "large_string", "string_view", "null")


def _image_parts(field: "pa.Field", file: Path) -> list[str]:
    """Returns the columns that make up the images."""
    import pyarrow as pa

    kinds = {}
    if pa.types.is_struct(field.type):
        kinds = {part.name: str(part.type) for part in field.type}
    if kinds.get("bytes") not in _BYTES or kinds.get("path", "null") not in _TEXT:
        raise UserError(
            f"The column {field.name!r} of {file} is of type {field.type}, expected a struct of "
            "bytes (binary) and path (text), as the datasets library writes it."
        )
    return [f"{field.name}.{part}" for part in ("bytes", "path") if part in kinds]


def _check_labels(field: "pa.Field", file: Path) -> None:
    import pyarrow as pa

    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if not pa.types.is_integer(kind) and str(kind) not in _TEXT:
        raise UserError(
            f"The column {field.name!r} of {file} is of type {field.type}, expected whole numbers "
            "or strings."
        )


def _class_names(metadata: dict[bytes, bytes], column: str, file: Path) -> tuple[str, ...] | None:
    where = f"the metadata 'huggingface' of {file}"
    if b"huggingface" not in metadata:
        return None
    place = read_json(metadata[b"huggingface"], where)
    for key in ("info", "features", column, "names"):
        if not isinstance(place, dict):
            raise UserError(
                f"There are no keys and values around {key!r} in {where}, expected them as the "
                "datasets library writes them; write the file again."
            )
        place = place.get(key)
        if place is None:
            return None
    if not isinstance(place, list):
        raise UserError(f"Got no list of class names in {where}; write the file again.")
    return declared_classes(place, where).names or None


class ParquetSet(RowSet):
    """Images of several files, kept in memory in their compressed form, decoded one at a time."""

    def __init__(self, files: Sequence[ParquetRows], classes: Classes) -> None:
        super().__init__([(each.labels, each.class_names) for each in files], classes)
        self.files = tuple(files)
        self.ends = np.cumsum([len(each.labels) for each in files])

    def name(self, index: int) -> str:
        part, row = located(self.ends, index)
        return f"{self.files[part].file.name} row {row}"

    def source(self, index: int, name: str) -> ImageSource:
        part, row = located(self.ends, index)
        try:
            cell = self.files[part].images[row].as_py() or {}
        except ValueError:  # a path that is no UTF-8
            raise BadImage(f"{name} has a path that is no text.") from None
        content, path = cell.get("bytes"), cell.get("path")
        if content is not None or not path:
            return content or b""
        try:
            return file_inside(self.files[part].file.parent, path)
        except UserError as error:
            raise BadImage(f"{name} has no image of its own: {error}") from None


_SHARD = re.compile(r"-of-(\d+)\.parquet$")


def parquet_splits(path: Path, *, for_training: bool = True) -> dict[str, ImageSet]:
    """Returns the splits of a parquet file (all "train") or of a folder of parquet files.

    In a folder the names of the files say the split: `train-00000-of-00002.parquet`,
    `validation.parquet`, `test.parquet`. Each file has a column `image` of `{bytes, path}` and a
    column `label` of class names, or of whole numbers that the schema's `huggingface` metadata
    names. The compressed bytes stay in memory; nothing is decoded here. A row whose label is none
    of the train split's classes is kept as a bad one.

    Args:
        for_training: There has to be a train split. Otherwise all splits together may give the
            classes, and files whose names say no split are one.
    """
    files = {"train": [path]} if not os.path.isdir(path) else _split_files(path, for_training)
    rows = {split: [read_parquet(file) for file in members] for split, members in files.items()}
    every = [each for members in rows.values() for each in members]
    train = rows.get("train", every)
    if train[0].class_names:
        classes = Classes(train[0].class_names)
    else:  # the labels name themselves
        classes = classes_of((label for some in train for label in some.labels), str(path))
    sets = {split: ParquetSet(members, classes) for split, members in rows.items()}
    notes = _unused(path, [each.file for each in every]) if os.path.isdir(path) else ()
    return labelled_splits(sets, str(path), notes)


def _unused(folder: Path, used: Sequence[Path]) -> tuple[str, ...]:
    others = [file.name for file in sorted(folder.glob("*.parquet")) if file not in used]
    if not others:
        return ()
    return (
        f"{len(others)} parquet files in {folder} are not used, because their names begin with no "
        f"split: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}.",
    )


def _split_files(folder: Path, for_training: bool) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.parquet")):
        first_word = re.split("[^a-z]", file.name.lower())[0]
        if first_word in SPLIT_OF_NAME:
            found.setdefault(SPLIT_OF_NAME[first_word], []).append(file)
    if not found and not for_training:
        return {"train": sorted(folder.glob("*.parquet"))}
    if for_training and "train" not in found:
        raise UserError(
            f"{folder} holds parquet files but none called train*.parquet; "
            "rename them after their split, or give the path of one file."
        )
    for split, files in found.items():
        shard = _SHARD.search(files[0].name)
        if shard and len(files) != int(shard[1]):
            raise UserError(
                f"{folder} holds {len(files)} of the {int(shard[1])} shards of {split}; "
                "fetch the missing ones."
            )
    return found
