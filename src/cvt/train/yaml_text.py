"""YAML as people mean it: 1e-3 is a number, off is a word, and no key may stand twice."""

import re
from functools import cache
from typing import Any

from cvt.errors import UserError

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


def read_yaml(text: str, what: str = "the text") -> Any:
    """Reads YAML into plain data.

    Args:
        what: What a message calls the text.

    Raises:
        UserError: It is no YAML, or a key stands twice in one mapping.
    """
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise UserError(f"{what} is not YAML: {' '.join(str(error).split())}.") from None


def write_yaml(plain: Any) -> str:
    """Writes plain data, mappings in their own order, so that `read_yaml` returns the same.

    Text that either version of YAML would take for something else is quoted.
    """
    import yaml

    return yaml.dump(plain, Dumper=_dumper(), sort_keys=False)


@cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own form

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = [key for index, key in enumerate(keys) if key in keys[:index]]
            if twice:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"{twice[0]} stands twice in the mapping of line {line}")
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
