"""Plain data: JSON and YAML of any origin read within bounds, and checked against a dataclass.

YAML is read as people mean it: 1e-3 is a number, off is a word, and no key may stand twice.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sized
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from cvt.errors import UserError, did_you_mean, is_unsafe
from cvt.files import read_small

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """What a number may be, in the annotation of a field: `Annotated[int, Range(1, 4096)]`.

    `above` and `below` are bounds that are themselves not allowed.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        is_open = self.above > -math.inf
        lower = f"above {self.above:.9g}" if is_open else f"from {self.least:.9g}"
        if self.below < math.inf:
            return f"{lower} to less than {self.below:.9g}"
        if self.most < math.inf:
            return f"{lower} to {self.most:.9g}"
        return lower if is_open else f"{lower} on"


@dataclass(frozen=True)
class Length:
    """How many items or letters, in the annotation of a field: `Annotated[str, Length(0, 80)]`."""

    least: int
    most: int

    def __contains__(self, value: Any) -> bool:
        return not isinstance(value, Sized) or self.least <= len(value) <= self.most


NOT_FINITE = "not finite"
"""Stands in a field's annotation, `Annotated[float, NOT_FINITE]`, where nan and inf may come."""


def from_plain(cls: Callable[..., T], plain: Any, what: str) -> T:
    """Builds a dataclass from plain data, each value checked against its field's annotation first.

    Understood are `Annotated` with a `Range` or a `Length`, `Literal`, unions, nested dataclasses,
    `tuple`, `list` and `dict` of such, and plain types. Lists become tuples where those are asked
    for, and whole numbers pass as floats; floats have to be finite, but for those with
    `NOT_FINITE`. An unknown key is refused with the name of the nearest field.

    Args:
        what: What a message calls the data, such as `the record in m.safetensors`.
    """
    return _built(cls, plain, _Place(what))


def from_others(cls: Callable[..., T], plain: Any, what: str) -> T:
    """As `from_plain`, for a file of somebody else's: keys that are no fields are passed over."""
    assert is_dataclass(cls)
    known = {each.name for each in dataclasses.fields(cls)}
    if isinstance(plain, Mapping):
        plain = {key: value for key, value in plain.items() if key in known}
    return from_plain(cls, plain, what)


def layer_from_plain(cls: Any, plain: Any, what: str) -> dict[str, Any]:
    """Checks some of a dataclass's fields, as `from_plain` does, and returns those that are said.

    A value of None says nothing, nor does a nested dataclass of which no field is said; the others
    come as nested dicts.
    """
    return _said(cls, plain, _Place(what))


def to_plain(value: Any, *, leave_out: Collection[str] = (), none: bool = True) -> Any:
    """Returns a dataclass, and what is in it, as plain data that `from_plain` reads back.

    Parts that have a `to_dict` of their own are written by it.

    Args:
        leave_out: Names of its fields that are not stored.
        none: Whether fields that are None are written.
    """

    def part(item: Any) -> Any:
        return item.to_dict() if hasattr(item, "to_dict") else to_plain(item, none=none)

    if isinstance(value, list | tuple):
        return [part(item) for item in value]
    if is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if not isinstance(value, Mapping):
        return str(value) if isinstance(value, Path) else value
    return {
        name: part(item)
        for name, item in value.items()
        if name not in leave_out and (none or item is not None)
    }


def check_values(instance: Any, what: str) -> None:
    """Checks each value of a dataclass against its annotation, as `from_plain` does.

    For the `__post_init__` of a dataclass that is built by hand as well; lists become tuples where
    those are asked for, in a frozen dataclass too.
    """
    for name, hint in _hints(type(instance)).items():
        value = _fitted(getattr(instance, name), hint, _Place(what, name))
        object.__setattr__(instance, name, value)


@dataclass(frozen=True)
class _Place:
    """Where a value stands, for a message: `optim.lr in the config`."""

    what: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.path} in {self.what}" if self.path else self.what

    def at(self, key: object) -> "_Place":
        """The place of a value inside."""
        return _Place(self.what, f"{self.path}.{key}" if self.path else str(key))


def _built(cls: Callable[..., T], plain: Any, place: _Place) -> T:
    hints = _hints_of_keys(cls, plain, place)
    for each in dataclasses.fields(cast("Any", cls)):
        has_default = each.default is not each.default_factory  # both MISSING where there is none
        if each.init and not has_default and each.name not in plain:
            raise UserError(
                f"There is no {place.at(each.name).path!r} in {place.what}, expected it."
            )
    return cls(**{key: _fitted(plain[key], hints[key], place.at(key)) for key in plain})


def _said(cls: Any, plain: Any, place: _Place) -> dict[str, Any]:
    hints, said = _hints_of_keys(cls, plain, place), {}
    for key, value in plain.items():
        kinds = (hints[key], *get_args(hints[key]))
        group = next((x for x in kinds if isinstance(x, type) and is_dataclass(x)), None)
        if value is not None and group is None:
            said[key] = _fitted(value, hints[key], place.at(key))
        elif value is not None and (inside := _said(group, value, place.at(key))):
            said[key] = inside
    return said


def _hints_of_keys(cls: Any, plain: Any, place: _Place) -> dict[str, Any]:
    """The annotations of a dataclass, whose fields all keys have to be."""
    if not isinstance(plain, Mapping):
        raise UserError(f"Got {_quoted(plain)} for {place}, expected keys with values.")
    known = [each.name for each in dataclasses.fields(cls)]
    for key in plain:
        if key not in known:
            name = place.at(key).path if isinstance(key, str) else key
            raise UserError(
                f"Got the unknown key {name!r} in {place.what}.{did_you_mean(str(key), known)}"
            )
    return _hints(cls)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {each.name: hints[each.name] for each in dataclasses.fields(cls)}


def _fitted(value: Any, hint: Any, place: _Place) -> Any:
    """Returns a value as its annotation wants it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return _bounded(value, arguments[0], arguments[1:], place)
    if origin in (Union, UnionType):
        return _one_of(value, arguments, place)
    if is_dataclass(hint):
        return value if isinstance(value, cast("type", hint)) else _built(hint, value, place)
    if origin in (tuple, list) and isinstance(value, list | tuple):
        return _items(value, origin, arguments, place)
    if origin is dict and isinstance(value, Mapping):
        inside = _Place(f"a key of {place}")
        return {
            _fitted(key, arguments[0], inside): _fitted(item, arguments[1], place)
            for key, item in value.items()
        }
    if not _is_a(value, hint):
        is_word = origin is Literal and isinstance(value, str)
        near = did_you_mean(value, arguments) if is_word else ""
        raise UserError(f"Got {_quoted(value)} for {place}, expected {_words(hint)}.{near}")
    return value


def _one_of(value: Any, options: tuple[Any, ...], place: _Place) -> Any:
    if value is None and NoneType in options:
        return None
    options = tuple(each for each in options if each is not NoneType)
    for option in options:
        try:
            return _fitted(value, option, place)
        except UserError:
            if len(options) == 1:
                raise
    words = " or ".join(map(_words, options))
    raise UserError(f"Got {_quoted(value)} for {place}, expected {words}.")


def _items(value: Any, origin: Any, arguments: tuple[Any, ...], place: _Place) -> Any:
    if origin is list or arguments[-1] is Ellipsis:
        return origin(_fitted(item, arguments[0], place) for item in value)
    if len(value) != len(arguments):
        raise UserError(
            f"Got {len(value)} values for {place}, expected {_words(origin[arguments])}."
        )
    return tuple(_fitted(item, each, place) for item, each in zip(value, arguments, strict=True))


def _bounded(value: Any, hint: Any, marks: tuple[Any, ...], place: _Place) -> Any:
    """Looks at the length before each item is looked at, since there may be millions."""
    for mark in marks:
        if isinstance(mark, Length) and value not in mark:
            unit = "letters" if isinstance(value, str) else "items"
            raise UserError(
                f"Got {len(value):,} {unit} for {place}, expected {mark.least:,} to {mark.most:,}."
            )
    if NOT_FINITE in marks and isinstance(value, float):
        return value
    value = _fitted(value, hint, place)
    for mark in marks:
        if isinstance(mark, Range) and value not in mark:
            raise UserError(f"Got {_quoted(value)} for {place}, expected a number {mark}.")
    return value


def _is_a(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return any(value == each and type(value) is type(each) for each in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and _is_number(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    kind = get_origin(hint) or hint
    # Of a protocol's subclass, Python 3.11 would ask every property: some build a network.
    return kind in type(value).__mro__ or isinstance(value, kind)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _words(hint: Any) -> str:
    """What a value should have been, for a message."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        mark = next((each for each in arguments[1:] if isinstance(each, Range)), "")
        return f"{_words(arguments[0])} {mark}".strip()
    if origin in (Union, UnionType):
        return " or ".join(map(_words, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}: {', '.join(map(_words, arguments))}"
    plain = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        NoneType: "nothing",
        tuple: "a list",
        list: "a list",
        dict: "keys with values",
    }
    return plain.get(origin or hint, "keys with values" if is_dataclass(hint) else str(hint))


def _quoted(value: Any) -> str:
    """A value for a message: its start, however large it is and whatever is in it."""
    if isinstance(value, Mapping):
        return f"a mapping with {len(value)} keys"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if len(repr(value[:8])) > 80 else repr(value[:8])
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a whole number of more than 20 digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


# --- Text of any origin, read within bounds.

MOST_TEXT = 64 * 2**20
"""Bytes of JSON that are read; ImageNet-22k's class names take half a megabyte."""

MOST_YAML = 2**20
"""Bytes of YAML that are read, which takes ten seconds; a config has two thousand."""

MOST_NESTED = 50
"""Lists and mappings that may lie inside one another."""


def read_json(text: str | bytes, what: str) -> Any:
    """Reads JSON into plain data; a message calls the text by `what`."""
    _check_size(text, MOST_TEXT, what)
    try:
        content = json.loads(text)
    except RecursionError:
        raise _too_deep(what) from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, too many digits
        raise UserError(f"Got no JSON in {what} ({error}); copy or write it again.") from None
    _check_depth(content, what)
    return content


def read_json_file(path: str | Path) -> Any:
    """Reads a file of JSON into plain data."""
    return read_json(read_small(path, MOST_TEXT), str(path))


def json_text(content: Any, indent: int | None = None) -> str:
    """Writes plain data as JSON: letters as they are, what could act on a terminal escaped."""
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"\\u{ord(each):04x}" if is_unsafe(each) and each != "\n" else each for each in text
    )


def read_yaml(text: str, what: str = "the text") -> Any:
    """Reads YAML into plain data."""
    import yaml

    _check_size(text, MOST_YAML, what)
    try:
        content = yaml.load(text, Loader=_loader())
    except RecursionError:
        raise _too_deep(what) from None
    except (ValueError, yaml.YAMLError) as error:  # ValueError: a number of too many digits
        raise UserError(f"{what} is not YAML: {' '.join(str(error).split())}.") from None
    _check_depth(content, what)
    return content


def read_yaml_file(path: str | Path, what: str = "") -> Any:
    """Reads a file of YAML into plain data; `what` is what a message calls it, if not its path."""
    what = what or str(path)
    try:
        text = read_small(path, MOST_YAML).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{what} is not YAML: {error}.") from None
    return read_yaml(text, what)


def write_yaml(plain: Any) -> str:
    """Writes plain data, mappings in their own order, so that `read_yaml` returns the same.

    Text that either version of YAML would take for something else is quoted.
    """
    import yaml

    return yaml.dump(plain, Dumper=_dumper(), sort_keys=False)


def _check_size(text: str | bytes, most: int, what: str) -> None:
    if len(text) > most:
        raise UserError(
            f"Got {len(text):,} characters in {what}, expected at most {most:,}; it is no file of "
            "this kind."
        )


def _check_depth(content: Any, what: str) -> None:
    level = [content]
    for _ in range(MOST_NESTED):
        level = [
            item
            for each in level
            if isinstance(each, list | dict)
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, list | dict)
        ]
        if not level:
            return
    raise _too_deep(what)


def _too_deep(what: str) -> UserError:
    return UserError(
        f"Lists or mappings lie more than {MOST_NESTED} deep in {what}; it is no file that this "
        "library, or one that it reads the files of, has written."
    )


# What counts as other than text, and the first letters to look at it for: YAML 1.2's core rules,
# without octals. PyYAML's are those of 1.1, where 1e-3 is text, off is false and 1:30 is ninety.
_KINDS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "null": (r"~|null|Null|NULL|", ("~", "n", "N", "")),
}


@cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own form

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            line = event.start_mark.line + 1
            if isinstance(event, yaml.events.AliasEvent):
                raise yaml.YAMLError(
                    f"line {line} refers to another value (*{event.anchor}), which is not read; "
                    "write the value itself"
                )
            if getattr(event, "tag", None) is not None:
                raise yaml.YAMLError(
                    f"line {line} has the tag {event.tag}, and none is read; leave it out"
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            line = node.start_mark.line + 1
            seen: set[Any] = set()
            for key in keys:
                if isinstance(key, list | dict):
                    raise yaml.YAMLError(f"a key of the mapping of line {line} is no single value")
                if key in seen:
                    raise yaml.YAMLError(f"{key} stands twice in the mapping of line {line}")
                seen.add(key)
            return super().construct_mapping(node, deep)

    return _with_kinds(Loader)


@cache
def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return _with_kinds(Dumper)


def _with_kinds(reader_or_writer: Any) -> Any:
    for kind, (pattern, first) in _KINDS.items():
        regex = re.compile(f"^(?:{pattern})$")
        reader_or_writer.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", regex, list(first))
    return reader_or_writer


# --- Numbers of models: kinds of field that specs and the files of others share.

# Beyond what has been built by anybody, so that a typing error or a stranger's file is told.
Width = Annotated[int, Range(1, 16384)]
Depth = Annotated[int, Range(0, 512)]
Kernel = Annotated[int, Range(1, 512)]
Padding = Annotated[int, Range(0, 512)]
Side = Annotated[int, Range(1, 4096)]
Channels = Annotated[int, Range(1, 4096)]
Classes = Annotated[int, Range(0, 1_000_000)]
Rate = Annotated[float, Range(0, 1)]
Ratio = Annotated[float, Range(above=0, most=64)]
Epsilon = Annotated[float, Range(above=0, most=1)]

MOST_STAGES = 16
