"""What trained ablations leave in their results folder: tables, a line a variant, a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cvt.bench.ablation import Ablation
from cvt.bench.ablation_blocks import legend, trained_block
from cvt.bench.ablation_plot import save_ablation
from cvt.bench.block import Block
from cvt.bench.findings import Finding, judge, write_csv
from cvt.bench.results import Results
from cvt.bench.table import say_contest
from cvt.figures import if_possible
from cvt.files import atomic_write
from cvt.train import markdown

NAME = "ablation"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written; one table and one block for each ablation, and notes for all of them."""

    tables: tuple[list[Finding], ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]


def write_report(folder: Path, ablations: Sequence[Ablation], results: Results) -> Report:
    """Compares with the paper, and writes `ablation.md`, `ablation.csv` and `ablation.png`.

    Raises:
        UserError: A file cannot be written.
    """
    tables = tuple(judge(ablation, results) for ablation in ablations)
    most = max((len(each.scores) for each in results.standings), default=0)
    report = Report(
        tables=tables,
        blocks=tuple(trained_block(findings) for findings in tables),
        notes=(*legend(most), *results.notes),
    )
    title = f"Ablations on {say_contest(results.facts)}"
    with atomic_write(folder / f"{NAME}.md", "w") as file:
        file.write(_page(title, report))
    write_csv(folder / f"{NAME}.csv", [each for findings in tables for each in findings])
    with if_possible():
        save_ablation(folder / f"{NAME}.png", tables, title)
    return report


def _page(title: str, report: Report) -> str:
    parts = [f"# {markdown.text(title)}\n", f"![Differences and their intervals]({NAME}.png)\n"]
    parts += [block.to_markdown() for block in report.blocks]
    parts.append("".join(f"- {markdown.text(note)}\n" for note in report.notes))
    return "\n".join(parts)
