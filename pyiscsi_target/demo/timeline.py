"""The story for a person: a live picture on a terminal, one line an event elsewhere.

Draws what a Story tells and shows; decides nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .story import Event, Kind, Node, Outcome, Story

FRAME_S = 0.1  # between two pictures of the clock
WIDTH_MAXIMUM = 100
_LOG_LINES_MINIMUM = 6
_LINES_BELOW = 2  # for the cursor, and for what the terminal echoes at Ctrl-C

STYLES = {
    Kind.STEP: "",
    Kind.RECORD: "dim",
    Kind.WAIT: "yellow",
    Kind.POWER: "bold white on red",
    Kind.REFUSED: "bold red",
    Kind.GOOD: "green",
}
_STATE_STYLES = {"no power": "bold red", "refused": "bold red", "writing": "green"}


class Timeline(Protocol):
    """Something that shows a story while it plays."""

    def tell(self, event: Event) -> None:
        """Show an event."""

    def watching(self, story: Story) -> contextlib.AbstractAsyncContextManager[None]:
        """Show the story within the block."""


class PlainTimeline:
    """One line an event, with the seconds since the beginning."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def tell(self, event: Event) -> None:
        """Print it."""
        line = f"{event.at_s:8.3f} s  node {event.who}  {event.text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextlib.asynccontextmanager
    async def watching(self, story: Story) -> AsyncIterator[None]:
        """There is nothing to do between the events."""
        yield


@dataclass(slots=True)
class Row:
    """A line of the log: an event, or a run of records of one node."""

    event: Event
    first_record: str

    @property
    def text(self) -> str:
        """What happened."""
        if self.event.kind is not Kind.RECORD or self.first_record == self.event.disk:
            return self.event.text
        return f"writes records {self.first_record} to {self.event.disk}"


def add_row(rows: list[Row], event: Event) -> None:
    """Add an event to the log; a record that follows one of the same node extends its line."""
    last = rows[-1].event if rows else None
    if last and event.kind is last.kind is Kind.RECORD and event.who == last.who:
        rows[-1].event = event
    else:
        rows.append(Row(event, event.disk))


class LiveTimeline:
    """Two nodes and the disk between them, and what has happened, drawn anew all the time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: list[Row] = []

    def tell(self, event: Event) -> None:
        """Keep it for the next picture."""
        add_row(self._rows, event)

    @contextlib.asynccontextmanager
    async def watching(self, story: Story) -> AsyncIterator[None]:
        """Draw within the block; the last picture stays."""
        with Live(console=self._console, auto_refresh=False) as live:
            drawing = asyncio.create_task(self._draw(live, story))
            try:
                yield
            finally:
                drawing.cancel()
                await asyncio.gather(drawing, return_exceptions=True)
                live.update(self.picture(story), refresh=True)

    async def _draw(self, live: Live, story: Story) -> None:
        while True:
            live.update(self.picture(story), refresh=True)
            await asyncio.sleep(FRAME_S)

    def picture(self, story: Story) -> RenderableType:
        """All of it, as it is now."""
        width = min(self._console.width, WIDTH_MAXIMUM)
        heads = _heads(story, width)
        room = max(_LOG_LINES_MINIMUM, self._console.height - self._lines_of(heads) - _LINES_BELOW)
        rows = self._rows[-room:]
        while len(rows) > 1 and self._lines_of(_log(rows, width)) > room:
            del rows[0]  # narrow terminals wrap, and the latest is what matters
        return Group(heads, _log(rows, width))

    def _lines_of(self, part: RenderableType) -> int:
        return len(self._console.render_lines(part, pad=False))


def _heads(story: Story, width: int) -> Table:
    table = Table.grid(expand=True)
    for _ in range(3):
        table.add_column(ratio=1)
    table.width = width
    table.add_row(_node(story, story.a, "cyan"), _disk(story), _node(story, story.b, "magenta"))
    return table


def _node(story: Story, node: Node, colour: str) -> Panel:
    key = Text(f"key {node.key:016X}") if node.registered else Text("not registered", "dim")
    last = "no record yet" if node.last_record is None else f"last record {node.last_record}"
    lines: list[RenderableType] = [
        Text(node.state, _STATE_STYLES.get(node.state, "bold")),
        key,
        Text(last),
        _progress(story, node),
    ]
    return Panel(Group(*lines), title=f"Node {node.name}", border_style=colour)


def _progress(story: Story, node: Node) -> RenderableType:
    wait = node.wait
    if wait is None:
        return Text("")
    gone_s = min(story.now_s() - wait.since_s, wait.length_s)
    table = Table.grid(padding=(0, 1))
    table.add_row(
        Text(wait.what, "yellow"),
        ProgressBar(total=wait.length_s, completed=gone_s, width=8),
    )
    return table


def _disk(story: Story) -> Panel:
    holder = Text("not reserved", "dim")
    if story.holder is not None:
        holder = Text(f"held by node {story.holder.name}", "bold green")
    lines = (
        holder,
        Text("type 5, WE-RO" if story.holder else ""),
        Text(f"{len(story.records)} records"),
        Text(f"{story.now_s():.1f} s", "dim"),
    )
    return Panel(Group(*lines), title="Disk", border_style="white")


def _log(rows: Iterable[Row], width: int) -> Table:
    table = Table(width=width, box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(justify="right", width=6, style="dim")
    table.add_column(ratio=1)
    table.add_column(justify="center", width=7)
    table.add_column(ratio=1)
    for row in rows:
        event = row.event
        text = Text(row.text, STYLES[event.kind])
        left, right = (text, Text("")) if event.who == "A" else (Text(""), text)
        table.add_row(f"{event.at_s:.2f}", left, Text(event.disk, STYLES[event.kind]), right)
    return table


def summary(outcome: Outcome) -> list[str]:
    """What to remember of it, in lines."""
    arrived = "is on the disk" if outcome.under_way_arrived else "is not on the disk"
    return [
        f"Failover: {outcome.gap_s:.2f} s without a writer, from node A's record "
        f"{outcome.last_record_of_a} to node B's record {outcome.first_record_of_b}",
        f"  {outcome.noticed_s:6.2f} s  until enough heartbeats were missed",
        f"  {outcome.challenge_s:6.2f} s  challenge, as arbitration asks for",
        f"  {outcome.target_s:6.2f} s  target: preemption, all records read back, first write",
        f"All {outcome.last_record} records are there, each as it was written.",
        f"Record {outcome.last_record_of_a + 1}, which was under way and never acknowledged, "
        f"{arrived}.",
    ]
