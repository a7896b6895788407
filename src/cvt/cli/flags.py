"""Flags that several verbs share."""

from typing import Annotated

from cyclopts import Parameter

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for machines.")]
Device = Annotated[
    str, Parameter(help="cpu, cuda, cuda:1, mps, ...; auto takes an accelerator if there is one.")
]
