"""`demo failover`: its output, its exit status, and what Ctrl-C does."""

import importlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from pyiscsi_target.app import StartError
from pyiscsi_target.cli import main
from pyiscsi_target.demo.story import WINDOWS, Event, Kind, Outcome, Story, StoryFailed, Timing
from pyiscsi_target.demo.timeline import PlainTimeline
from tests.support.fast_story import FAST

OUTCOME = Outcome(1, 2, 3, False, 0.5, 0.25, 0.125)


@pytest.fixture(autouse=True)
def fast_and_tidy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fast story in a folder of ours, in which nothing is left at the end."""
    command = importlib.import_module("pyiscsi_target.cli.demo")
    monkeypatch.setattr(command, "Timing", lambda: FAST)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    assert not list(tmp_path.iterdir())


def demo(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["demo", "failover", *arguments])


def test_all_is_as_it_should_be() -> None:
    result = demo()
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].endswith("node A  logs in")
    assert any(line.endswith("RESERVATION CONFLICT") for line in lines)
    assert any(line.startswith("Failover: ") for line in lines)
    assert not result.stderr


@pytest.mark.parametrize("arguments", [(), ("--plain",)])
def test_on_a_terminal_it_is_drawn(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    command = importlib.import_module("pyiscsi_target.cli.demo")
    monkeypatch.setattr(command, "Console", lambda: Console(force_terminal=True, width=80))
    result = demo(*arguments)
    assert result.exit_code == 0, result.output
    assert ("Node A" in result.stdout) is (not arguments)
    assert "Failover: " in result.stdout


@pytest.mark.parametrize("error", [StoryFailed("record 7 is lost"), StartError("no disk")])
def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def fails(story: Story) -> Outcome:
        raise error

    monkeypatch.setattr(Story, "play", fails)
    result = demo("--plain")
    assert result.exit_code == 1
    assert result.stderr == f"NOT AS IT SHOULD BE: {error}\n"


def test_an_error_of_the_server_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    async def complains(story: Story) -> Outcome:
        importlib.import_module("logging").getLogger("pyiscsi_target.app").error("disk_is_ill")
        return OUTCOME

    monkeypatch.setattr(Story, "play", complains)
    result = demo()
    assert result.exit_code == 1
    assert "the server has logged errors: disk_is_ill" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_cleanly(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    told: list[Event] = []

    def tell(timeline: PlainTimeline, event: Event) -> None:
        told.append(event)
        if event.kind is Kind.POWER:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(PlainTimeline, "tell", tell)
    result = demo()
    assert result.exit_code == 130
    assert result.stderr == "Interrupted; nothing is left behind.\n"
    assert not any(event.text.startswith("preempts") for event in told)


@pytest.mark.parametrize(
    ("arguments", "timing"), [((), FAST), (("--windows-timing",), replace(WINDOWS))]
)
def test_timing(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], timing: Timing
) -> None:
    async def told(story: Story) -> Outcome:
        assert story.timing == timing
        return OUTCOME

    monkeypatch.setattr(Story, "play", told)
    result = demo(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Failover: 0.88 s")
