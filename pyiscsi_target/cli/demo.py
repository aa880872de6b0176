"""`pyiscsi-target demo`: stories to watch, each without any other machine."""

import asyncio
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..app import StartError
from ..client import ClientError
from ..demo.stage import LUN, TARGET, stage
from ..demo.story import WINDOWS, Outcome, Story, StoryFailed, Timing, node_at
from ..demo.timeline import LiveTimeline, PlainTimeline, Timeline, summary

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


class Interrupted(Exception):
    """Ctrl-C or SIGTERM before the end."""


@click.group(short_help="Stories to watch, without any other machine.")
def demo() -> None:
    """Stories to watch: a server and simulated nodes on loopback."""


@demo.command(short_help="A node loses its power, the other one takes over.")
@click.option("--plain", is_flag=True, help="One line an event; so it is where no terminal is.")
@click.option(
    "--windows-timing",
    is_flag=True,
    help="Wait as Windows does: 10 heartbeats of 1 s, renewals of 3 s, a challenge of 7 s.",
)
def failover(plain: bool, windows_timing: bool) -> None:
    """Two nodes share a quorum disk; one loses its power, the other takes over.

    A server in this process serves a temporary disk. Exit status 0 if all was as it should be, 1
    if not, with the reason, 130 after Ctrl-C.
    """
    console = Console()
    timeline = PlainTimeline(console) if plain or not console.is_terminal else LiveTimeline(console)
    timing = WINDOWS if windows_timing else Timing()
    # The server owns its sockets and needs add_reader, which Windows' default loop lacks.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        sys.exit(runner.run(_failover(timing, timeline, console)))


async def _failover(timing: Timing, timeline: Timeline, console: Console) -> int:
    try:
        outcome = await _play(timing, timeline)
    except Interrupted:
        click.echo("Interrupted; nothing is left behind.", err=True)
        return EXIT_INTERRUPTED
    except (StoryFailed, ClientError, StartError) as error:
        click.echo(f"NOT AS IT SHOULD BE: {error}", err=True)
        return EXIT_FAILED
    for line in summary(outcome):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


async def _play(timing: Timing, timeline: Timeline) -> Outcome:
    """Raises Interrupted, StoryFailed, ClientError, StartError; the server is gone in any case."""
    with tempfile.TemporaryDirectory(prefix="pyiscsi-target-demo-") as directory:
        async with stage(Path(directory)) as server:
            a, b = (node_at(name, server.portal, TARGET, LUN) for name in "AB")
            story = Story(a, b, timing, timeline.tell)
            async with timeline.watching(story):
                outcome = await _unless(server.app.run_until_stopped(), story)
            if server.errors:
                raise StoryFailed(f"the server has logged errors: {', '.join(server.errors)}")
            return outcome


async def _unless(stopped: Coroutine[Any, Any, None], story: Story) -> Outcome:
    """The story's outcome. Raises Interrupted if the server is told to stop before."""
    playing, stopping = asyncio.create_task(story.play()), asyncio.create_task(stopped)
    try:
        await asyncio.wait({playing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not playing.done():
            raise Interrupted
        return playing.result()
    finally:
        for task in (playing, stopping):
            task.cancel()
        await asyncio.gather(playing, stopping, return_exceptions=True)
