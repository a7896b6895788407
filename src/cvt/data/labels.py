"""Labels as tables, archives and folders state them, brought to class numbers."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvt.errors import UserError

MOST_CLASSES = 1_000_000
"""Classes of one data set; a number from here on is no label."""

MOST_CLASS_NAME = 1000
"""Letters of a class name."""

Label = int | str
"""A class by its number or by its name; names are in Unicode's composed normal form (NFC)."""

_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")  # 02134 is a postcode


@dataclass(frozen=True)
class BadLabel:
    """Why a value is no label; `is_missing` where there is none, as in a contest's test split."""

    why: str
    is_missing: bool = False


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Args:
        are_declared: Whether the data lists them apart from its labels: then a whole number is a
            position among them, otherwise a name like any other.
    """

    names: tuple[str, ...]
    are_declared: bool = True
    notes: tuple[str, ...] = ()


def as_label(value: Any) -> Label | BadLabel:
    """Returns a table's cell, a JSON value or the text of a file as a label."""
    if value is None or (isinstance(value, int) and value == -1):
        return BadLabel("has no label", is_missing=True)
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < MOST_CLASSES:
            return value
        got = value if abs(value) < 10**20 else "of more than 20 digits"
        return BadLabel(f"has the label {got}, expected a number from 0 to {MOST_CLASSES - 1:,}")
    if not isinstance(value, str):
        kind = type(value).__name__
        return BadLabel(f"has a label of the kind {kind}, expected a whole number or a name")
    if len(value) > MOST_CLASS_NAME:
        got = f"{len(value):,} letters"
        return BadLabel(f"has a label of {got}, expected at most {MOST_CLASS_NAME}")
    name = composed(value.strip())
    if not name:
        return BadLabel("has no label", is_missing=True)
    try:
        name.encode()
    except UnicodeEncodeError:
        return BadLabel(f"has the label {name!r}, which is no text")
    return name


def declared_classes(names: Sequence[Any], where: str) -> Classes:
    """Checks the class names that a file lists; one may come twice, like ImageNet's crane."""
    if len(names) > MOST_CLASSES:
        raise UserError(
            f"Got {len(names):,} class names in {where}, expected at most {MOST_CLASSES:,}."
        )
    labels = [as_label(each) for each in names]
    for number, (name, given) in enumerate(zip(labels, names, strict=True)):
        if not isinstance(name, str):
            why = name.why if isinstance(name, BadLabel) and isinstance(given, str) else "has none"
            raise UserError(
                f"Class {number} in {where} {why}; write its name as text of at most "
                f"{MOST_CLASS_NAME:,} letters."
            )
    return Classes(tuple(map(str, labels)))


def classes_of(labels: Iterable[Label | BadLabel], source: str) -> Classes:
    """Returns the classes of labels without declared names: each label is a class's name.

    Whole numbers are sorted as such and names as text. Numbers that do not run from 0 without a
    gap get a note.
    """
    seen = {str(label) for label in labels if not isinstance(label, BadLabel)}
    if not all(_NUMBER.fullmatch(name) for name in seen):
        return Classes(tuple(sorted(seen)), are_declared=False)
    numbers = sorted(map(int, seen))
    notes = ()
    if numbers and numbers != list(range(len(numbers))):
        notes = (
            f"The labels of {source} are {len(numbers)} numbers from {numbers[0]} to "
            f"{numbers[-1]}, not all those from 0 on: each is a class, called by its number.",
        )
    return Classes(tuple(map(str, numbers)), are_declared=False, notes=notes)


def numbered(
    labels: Sequence[Label | BadLabel], classes: Classes, own_names: Sequence[str] | None = None
) -> tuple[np.ndarray, dict[int, BadLabel]]:
    """Returns the position of each label in `classes`, int64, and why some have none (-1).

    Names are matched by `class_positions`. Text that looks like a number is a name as well, unless
    the classes are declared and some text is not among them.

    Args:
        own_names: What whole numbers stand for in this file, if it says so itself.
    """
    if own_names is not None and tuple(own_names) == classes.names:
        own_names = None
    own = None if own_names is None else class_positions(own_names, classes.names)
    distinct, count = set(labels), len(classes.names)
    names = sorted({str(each) for each in distinct if not isinstance(each, BadLabel)})
    positions = dict(zip(names, class_positions(names, classes.names), strict=True))
    are_names = all(positions[each] is not None for each in distinct if isinstance(each, str))

    def find(label: Label | BadLabel) -> int | None:
        if isinstance(label, BadLabel):
            return None
        if isinstance(label, int) and own is not None:
            return own[label] if label < len(own) else None
        if isinstance(label, int) and classes.are_declared:
            return label if label < count else None
        is_position = classes.are_declared and not are_names and _NUMBER.fullmatch(str(label))
        return int(label) if is_position and int(label) < count else positions[str(label)]

    found = {label: find(label) for label in distinct}
    bad = {
        row: label if isinstance(label, BadLabel) else _foreign(label, classes)
        for row, label in enumerate(labels)
        if found[label] is None
    }
    numbers = (-1 if found[label] is None else found[label] for label in labels)
    return np.fromiter(numbers, np.int64, len(labels)), bad


def _foreign(label: Label, classes: Classes) -> BadLabel:
    return BadLabel(f"has the label {label!r}, none of the {len(classes.names)} classes")


def class_positions(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Returns for each name its position in `known`, or None.

    Names match in any Unicode form. A name without a match may differ in case, if that is
    unambiguous among both the known names and `names`.
    """
    exact, folded = _index(known, composed), _index(known, _folded)
    found = [exact.get(composed(name)) for name in names]
    taken = set(found)
    for place, name in enumerate(names):
        if found[place] is None and (near := folded.get(_folded(name))) not in taken:
            found[place] = near
            taken.add(near)
    return found


def _index(names: Sequence[str], form: Callable[[str], str]) -> dict[str, int | None]:
    """Returns the positions of names by their form; None for one that several have."""
    positions: dict[str, int | None] = {}
    for position, name in enumerate(names):
        positions[form(name)] = None if form(name) in positions else position
    return positions


def composed(name: str) -> str:
    """Returns a name in Unicode's composed normal form (NFC)."""
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", composed(name).casefold())
