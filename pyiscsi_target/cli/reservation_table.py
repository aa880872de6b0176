"""Reservation reports for a person: a table for each disk on a terminal, plain lines elsewhere."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_TITLES = ("Initiator port", "Target port", "Key", "Holds", "Session")


def print_reservations(disks: list[dict[str, Any]], running: bool, console: Console) -> None:
    """Print the reports to `console`, whose kind decides the form."""
    for disk in disks:
        if console.is_terminal and disk["registrations"]:
            console.print(_table(disk))
        else:
            for line in _lines(disk):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not running:
        console.print("No server runs: this is what the next one starts with.", highlight=False)


def _summary(disk: dict[str, Any]) -> str:
    if disk["lost"]:
        return "its reservations are lost (an initiator must send REPLACE LOST RESERVATION)"
    if disk["reserved_by"]:
        return f"reserved by {disk['reserved_by']} (RESERVE)"
    if not disk["registrations"]:
        return "nobody is registered"
    survives = "survives a power loss" if disk["aptpl"] else "does not survive a power loss"
    return f"{disk['type'] or 'not reserved'}, generation {disk['generation']}, {survives}"


def _rows(disk: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for entry in disk["registrations"]:
        yield (
            entry["initiator_port"],
            str(entry["target_port"]),
            entry["key"],
            "yes" if entry["holder"] else "",
            {None: "unknown", True: "open", False: "none"}[entry["connected"]],
        )


def _table(disk: dict[str, Any]) -> Table:
    title = escape(f"{disk['disk']}: {_summary(disk)}")
    table = Table(*_TITLES, title=title, title_justify="left", title_style="bold")
    table.columns[0].overflow = "fold"  # a name that is cut off cannot be copied
    for row in _rows(disk):
        table.add_row(*map(escape, row))
    return table


def _lines(disk: dict[str, Any]) -> Iterator[str]:
    yield f"{disk['disk']}: {_summary(disk)}"
    for port, target_port, key, holds, session in _rows(disk):
        holder = ", holds the reservation" if holds else ""
        yield f"  {port}, target port {target_port}, key {key}, session: {session}{holder}"
