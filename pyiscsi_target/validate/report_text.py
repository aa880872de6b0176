"""A report for a person: tables on a terminal, plain lines elsewhere. The last line is the verdict.

Nothing of what a target said is taken for markup or reaches a terminal as a control character.
"""

from collections.abc import Iterator
from itertools import groupby

from rich.box import ROUNDED
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .model import Area, CheckResult, Conclusion, Report, Verdict
from .wording import printable

_STYLES = {
    Verdict.PASS: "green",
    Verdict.FAIL: "bold red",
    Verdict.WARN: "yellow",
    Verdict.SKIP: "dim",
}
_CONCLUSION_STYLES = {
    Conclusion.READY: "bold green",
    Conclusion.NOT_READY: "bold red",
    Conclusion.UNPROVEN: "bold yellow",
}


def print_report(report: Report, console: Console) -> None:
    """Print to `console`, whose kind decides the form."""
    lines = list(describe_target(report))
    if console.is_terminal:
        console.print()
        for line in lines:
            console.print(Text(line))
        for area, results in by_area(report):
            console.print(_table(area, results))
        console.print(Text(report.headline, _CONCLUSION_STYLES[report.conclusion]))
        return
    lines += plain_lines(report)
    lines.append(report.headline)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def by_area(report: Report) -> Iterator[tuple[Area, list[CheckResult]]]:
    """The results of each part, in order."""
    for area, results in groupby(report.results, key=lambda result: result.check.area):
        yield area, list(results)


def describe_target(report: Report) -> Iterator[str]:
    """What was validated, a line for each fact."""
    target = report.target
    yield f"target: {printable(target.name)}"
    yield f"portals: {', '.join(map(printable, target.portals or (target.portal,)))}"
    if target.lun is not None:
        about = printable(" ".join((target.vendor, target.product, target.revision)))
        yield f"disk: LUN {target.lun}, {about}, serial {printable(target.serial)}"
        yield f"size: {target.size_bytes} bytes in blocks of {target.block_size}"
    yield f"nodes: {', '.join(printable(node.initiator_name) for node in report.nodes)}"
    yield f"writes: {'allowed, on two scratch blocks' if report.writes_allowed else 'none'}"


def remarks(result: CheckResult) -> Iterator[tuple[str, str]]:
    """What belongs below a check that did not pass: label and text."""
    if result.expected:
        yield "expected", printable(result.expected)
    if result.fix:
        yield "fix", result.fix
    if result.check.clause and result.verdict in (Verdict.FAIL, Verdict.WARN):
        yield "see", result.check.clause


def plain_lines(report: Report) -> Iterator[str]:
    """The checks, without colours."""
    for area, results in by_area(report):
        yield ""
        yield area.value
        for result in results:
            yield f"  {result.verdict.name}  {result.check.title}: {printable(result.seen)}"
            for label, text in remarks(result):
                yield f"        {label}: {text}"


def _table(area: Area, results: list[CheckResult]) -> Table:
    table = Table(
        title=area.value, title_justify="left", expand=True, box=ROUNDED, show_header=False
    )
    table.add_column(width=4)
    table.add_column(ratio=2)
    table.add_column(ratio=3, overflow="fold")
    for result in results:
        seen = Text(printable(result.seen))
        for label, text in remarks(result):
            seen.append(f"\n{label}: ", "dim")
            seen.append(text)
        verdict = Text(result.verdict.name, _STYLES[result.verdict])
        table.add_row(verdict, Text(result.check.title), seen)
    return table
