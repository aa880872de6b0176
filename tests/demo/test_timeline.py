"""What a person sees: lines without a terminal, a picture of 80 columns on one."""

import asyncio
import io
from dataclasses import replace

import pytest
from rich.console import Console

from pyiscsi_target.client import Portal
from pyiscsi_target.demo.story import Event, Kind, Outcome, Story, Timing, Wait, node_at
from pyiscsi_target.demo.timeline import LiveTimeline, PlainTimeline, Row, add_row, summary

OUTCOME = Outcome(
    last_record_of_a=15,
    first_record_of_b=17,
    last_record=32,
    under_way_arrived=True,
    noticed_s=1.1,
    challenge_s=2.1,
    target_s=0.05,
)


def console(*, terminal: bool, height: int = 24, width: int = 80) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(
        file=output,
        width=width,
        height=height,
        force_terminal=terminal,
        color_system=None,
        legacy_windows=False,
    ), output


async def a_story() -> Story:
    a, b = (node_at(name, Portal("127.0.0.1"), "iqn.2026-11.x:y", 0) for name in "AB")
    return Story(a, b, Timing(), lambda event: None)


def record(who: str, number: int) -> Event:
    return Event(number / 10, who, Kind.RECORD, f"writes record {number}", str(number))


async def test_plain_lines() -> None:
    printer, output = console(terminal=False)
    timeline = PlainTimeline(printer)
    async with timeline.watching(await a_story()):
        timeline.tell(Event(0.0123, "A", Kind.STEP, "logs in [green]"))
        timeline.tell(Event(12.5, "B", Kind.GOOD, "x" * 100))
    assert output.getvalue() == (
        f"   0.012 s  node A  logs in [green]\n  12.500 s  node B  {'x' * 100}\n"
    )


def test_records_of_one_node_share_a_row() -> None:
    rows: list[Row] = []
    for event in (
        record("A", 1),
        record("A", 2),
        record("A", 3),
        Event(0.4, "A", Kind.POWER, "POWER PULLED"),
        record("A", 4),
        record("B", 5),
    ):
        add_row(rows, event)
    assert [(row.event.who, row.text) for row in rows] == [
        ("A", "writes records 1 to 3"),
        ("A", "POWER PULLED"),
        ("A", "writes record 4"),
        ("B", "writes record 5"),
    ]
    assert rows[0].event.at_s == 0.3


async def picture(height: int = 24, events: int = 0, width: int = 80) -> list[str]:
    printer, output = console(terminal=True, height=height, width=width)
    timeline = LiveTimeline(printer)
    story = await a_story()
    story.a.state, story.a.registered, story.a.last_record = "no power", True, 15
    story.b.state, story.b.challenging, story.b.registered = "challenging", True, True
    story.b.wait = Wait("challenge", 0.0, 2.0)
    story.holder = story.a
    story.records = dict.fromkeys(range(1, 16), story.a)
    for number in range(events):
        timeline.tell(Event(number, "AB"[number % 2], Kind.STEP, f"event {number}", "disk"))
    printer.print(timeline.picture(story))
    return output.getvalue().splitlines()


async def test_a_picture_shows_both_nodes_and_the_disk() -> None:
    lines = await picture(events=2)
    text = "\n".join(lines)
    for expected in (
        "Node A",
        "Disk",
        "Node B",
        "no power",
        "key 000000414D736674",
        "last record 15",
        "held by node A",
        "type 5, WE-RO",
        "15 records",
        "challenging",
        "key 800000424D736674",
        "no record yet",
        "challenge",
    ):
        assert expected in text
    assert max(map(len, lines)) <= 80


async def test_the_log_has_a_column_for_each_node() -> None:
    lines = await picture(events=2)
    first, second = (next(line for line in lines if f"event {n}" in line) for n in (0, 1))
    assert first.index("event 0") < first.index("disk")
    assert second.index("event 1") > second.index("disk")
    assert first.index("disk") == second.index("disk")


@pytest.mark.parametrize(("height", "width"), [(24, 80), (50, 80), (20, 60), (20, 40)])
async def test_it_fits_the_terminal_and_shows_the_latest(height: int, width: int) -> None:
    lines = await picture(height, events=100, width=width)
    assert len(lines) < height
    assert "event 99" in lines[-1]


async def test_where_lines_wrap_the_latest_is_still_to_be_seen() -> None:
    printer, output = console(terminal=True, height=20, width=60)
    timeline = LiveTimeline(printer)
    for number in range(100):
        timeline.tell(Event(number, "A", Kind.STEP, f"says what it takes two lines for: {number}"))
    printer.print(timeline.picture(await a_story()))
    lines = output.getvalue().splitlines()
    assert len(lines) < 20
    assert "for: 99" in lines[-1]


async def test_it_is_drawn_while_the_story_plays() -> None:
    printer, output = console(terminal=True)
    timeline = LiveTimeline(printer)
    async with timeline.watching(await a_story()):
        while "Node A" not in output.getvalue():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        timeline.tell(Event(1.0, "A", Kind.STEP, "the last event"))
    assert "the last event" in output.getvalue()


@pytest.mark.parametrize("arrived", [True, False])
def test_the_summary(arrived: bool) -> None:
    outcome = replace(OUTCOME, under_way_arrived=arrived)
    lines = summary(outcome)
    text = "\n".join(lines)
    assert "3.25 s without a writer, from node A's record 15 to node B's record 17" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["1.10", "2.10", "0.05"]
    assert "All 32 records" in text
    assert ("not on the disk" in text) is not arrived
    assert max(map(len, lines)) <= 80
