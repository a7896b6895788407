"""Flags that several verbs share."""

from typing import Annotated

from cyclopts import Parameter

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for machines.")]
Device = Annotated[
    str, Parameter(help="cpu, cuda, cuda:1, mps, ...; auto takes an accelerator if there is one.")
]
DataDir = Annotated[str | None, Parameter(help="Where torch/ and hfds/ data lie.")]
Download = Annotated[
    bool, Parameter(negative="", help="Fetch a torch/ data set that is not there yet.")
]
BatchSize = Annotated[int, Parameter(help="Images per forward pass, in each process.")]
NumWorkers = Annotated[int, Parameter(help="Processes that prepare images; 0: none.")]
