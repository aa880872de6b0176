"""What is served, for a person: a table on a terminal, plain lines elsewhere."""

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..server.overview import Overview, TargetRow

_TITLES = ("Target", "LUNs", "Admitted", "Terms")


def print_overview(overview: Overview, console: Console) -> None:
    """Print to `console`, whose kind decides the form."""
    if console.is_terminal:
        console.print(_table(overview))
    else:
        for line in _lines(overview):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cells(row: TargetRow) -> tuple[str, ...]:
    parts = ((row.name,), row.luns or ("none",), row.admitted, row.terms or ("-",))
    return tuple("\n".join(part) for part in parts)


def _table(overview: Overview) -> Table:
    table = Table(*_TITLES, caption=f"Portals: {', '.join(overview.portals)}", show_lines=True)
    table.columns[0].overflow = "fold"  # a name that is cut off cannot be copied
    for row in overview.targets:
        table.add_row(*(escape(cell) for cell in _cells(row)))
    return table


def _lines(overview: Overview) -> Iterator[str]:
    for row in overview.targets:
        yield row.name
        for title, cell in zip(_TITLES[1:], _cells(row)[1:], strict=True):
            yield f"  {title.lower()}: {cell.replace(chr(10), '; ')}"
    yield f"portals: {', '.join(overview.portals)}"
