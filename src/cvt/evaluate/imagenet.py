"""Which output of a model, and which folder of pictures, stands for which ImageNet class."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cvt.data.file_set import FileSet
from cvt.data.folder import folder_splits
from cvt.errors import UserError
from cvt.evaluate.timm_lists import imagenet_synsets, synset_words, words_of

_NUMBER = re.compile(r"0|[1-9][0-9]{0,2}")  # 007 beside 7 would be the same class


def imagenet_outputs(class_names: Sequence[str] | None, num_outputs: int) -> Tensor:
    """Returns, for each ImageNet class in order, its position among the outputs: int64, (1000,).

    WordNet numbers are matched by name, whatever their order and whatever else the model knows.
    Words, such as `tench, Tinca tinca`, have to stand in ImageNet's order: at least half of them
    must be WordNet's for that class, because published lists differ in many names and repeat some.

    Raises:
        UserError: The model does not have ImageNet's classes, or not all of them.
    """
    synsets = imagenet_synsets()
    position = {name: index for index, name in enumerate(class_names or ())}
    missing = [synset for synset in synsets if synset not in position]
    if not missing:
        return torch.tensor([position[synset] for synset in synsets])
    if len(missing) < len(synsets):
        raise UserError(
            f"Got a model without the class {missing[0]} ({len(missing)} of ImageNet's "
            f"{len(synsets):,} are missing), expected one that has them all."
        )
    if num_outputs != len(synsets):
        raise UserError(
            f"Got a model with {num_outputs} outputs, expected the {len(synsets):,} classes of "
            "ImageNet; benchmarks are for models trained on those."
        )
    pairs = zip(class_names or (), synset_words(), strict=False)
    num_agreeing = sum(not known.isdisjoint(words_of(name)) for name, known in pairs)
    if class_names and 2 * num_agreeing < len(synsets):
        raise UserError(
            f"Got a model whose first class is {class_names[0]!r}, expected ImageNet's classes in "
            f"ImageNet's order, or their WordNet numbers such as {synsets[0]}."
        )
    return torch.arange(len(synsets))


def read_classes(
    folder: Path, title: str, synsets: Sequence[str], *, numbered: bool = False
) -> FileSet:
    """Returns the pictures of a folder that holds one folder for each of the given classes.

    Folders are called by WordNet number or, with `numbered`, also by position in ImageNet.

    Args:
        title: What messages call such a folder.

    Raises:
        UserError: There is no such folder, a class is missing, or a folder is not one of them.
    """
    expected = f"expected {title}: a folder for each of its {len(synsets):,} classes, called "
    expected += f"0 to {len(synsets) - 1} or as in {synsets[0]}" if numbered else f"as {synsets[0]}"
    names = class_folders(folder, expected)
    label_of = {synset: index for index, synset in enumerate(synsets)}
    if numbered:
        label_of |= {name: int(name) for name in names if _NUMBER.fullmatch(name)}
    unknown = [name for name in names if not 0 <= label_of.get(name, -1) < len(synsets)]
    if unknown:
        raise UserError(f"{folder} holds a folder {unknown[0]!r}, {expected}.")
    missing = set(range(len(synsets))) - {label_of[name] for name in names}
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(synsets):,} classes of {title}, such as "
            f"{synsets[min(missing)]}; unpack the whole of it."
        )
    found = folder_splits(folder)["train"]
    labels = [label_of[found.classes[label]] for label in found.labels]
    return FileSet([found.name(index) for index in range(len(found))], labels, synsets)


def class_folders(folder: Path, expected: str) -> list[str]:
    """Returns the names of the folders in a folder, sorted as text; hidden ones do not count.

    Args:
        expected: The half of the message that says what should have been there.

    Raises:
        UserError: There are none.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"Cannot read {folder} ({error.strerror or error}), {expected}.") from error
    names = [each.name for each in entries if each.is_dir() and not each.name.startswith(".")]
    if not names:
        raise UserError(f"{folder} holds no folders, {expected}.")
    return names
