"""The one place that reads the ImageNet lists inside timm's package, so that one test can watch it.

timm offers no function for the class lists of ImageNet-A and -R, and its reader of the ReaL labels
insists on the names of all 50,000 files.
"""

import json
from functools import cache
from importlib.resources import files


@cache
def imagenet_synsets() -> tuple[str, ...]:
    """Returns the WordNet numbers of ImageNet-1k's 1000 classes, in the order of every head."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def synset_words() -> tuple[frozenset[str], ...]:
    """Returns WordNet's words for each of the 1000 classes, in lower case."""
    from timm.data import ImageNetInfo

    return tuple(map(words_of, ImageNetInfo("imagenet-1k").label_descriptions()))


def words_of(class_name: str) -> frozenset[str]:
    """Returns the words that a class name such as `tench, Tinca tinca` lists, in lower case."""
    return frozenset(word.strip().lower().replace("_", " ") for word in class_name.split(","))


@cache
def subset_synsets(letter: str) -> tuple[str, ...]:
    """Returns the 200 classes of ImageNet-A or ImageNet-R (`a`, `r`), in ImageNet's order."""
    return tuple(_read(f"imagenet_{letter}_synsets.txt").split())


@cache
def real_labels() -> tuple[tuple[int, ...], ...]:
    """Returns the classes that fit each of ImageNet's 50,000 validation pictures, in file order.

    Source: Beyer et al., Are we done with ImageNet?, arXiv 2006.07159 (ReaL labels).
    """
    return tuple(map(tuple, json.loads(_read("imagenet_real_labels.json"))))


def _read(name: str) -> str:
    return (files("timm.data") / "_info" / name).read_text(encoding="utf-8")
