"""The form of a log line, which programs read."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyiscsi_target.server import logs
from pyiscsi_target.server.config_values import Secret

LOGGER = logging.getLogger("pyiscsi_target.test_logs")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


def logged(stream: io.StringIO, log_format: logs.LogFormat, **fields: Any) -> str:
    logs.configure(log_format, stream=stream)
    logs.log_event(LOGGER, logging.INFO, "login", **fields)
    line = stream.getvalue()
    assert line.count("\n") == 1
    return line.rstrip("\n")


def test_key_value_line(stream: io.StringIO) -> None:
    line = logged(stream, "kv", initiator="iqn.2026-11.lab.example:a", count=3, ok=True, none=None)
    time, rest = line.split(" ", 1)
    assert time.startswith("time=20")
    assert time.endswith("Z")
    assert rest == "level=info event=login initiator=iqn.2026-11.lab.example:a count=3 ok=true"


@pytest.mark.parametrize(
    ("value", "spelt"),
    [
        ("", '""'),
        ("two words", '"two words"'),
        ('say "x"', r'"say \"x\""'),
        ("a=b", '"a=b"'),
        ("line\nbreak", r'"line\nbreak"'),
        ("\x1b[31m", r'"\u001b[31m"'),
        ("\u2028", r'"\u2028"'),
        ("\x7f", r'"\u007f"'),
        ("b\u00fcro", "b\u00fcro"),
        ("back\\slash", r'"back\\slash"'),
        ("[::1]:3260", "[::1]:3260"),
        (0.25, "0.25"),
        (Path("/a/b"), "/a/b"),
    ],
)
def test_quoting_keeps_a_line_one_line(stream: io.StringIO, value: object, spelt: str) -> None:
    line = logged(stream, "kv", key=value)
    assert line.partition("event=login ")[2] == f"key={spelt}"


def test_json_line(stream: io.StringIO) -> None:
    fields = json.loads(logged(stream, "json", lun=0, name='a "b"\n', none=None, path=Path("/x")))
    assert list(fields)[:3] == ["time", "level", "event"]
    del fields["time"]
    assert fields == {"level": "info", "event": "login", "lun": 0, "name": 'a "b"\n', "path": "/x"}


def test_an_exception_is_on_the_line_of_its_event(stream: io.StringIO) -> None:
    line = logged(stream, "kv", exc=ValueError("two\nlines"))
    assert 'exception="ValueError: two\\nlines"' in line
    assert "traceback=" in line


def test_the_messages_of_libraries_take_the_same_form(stream: io.StringIO) -> None:
    logs.configure("kv", stream=stream)
    logging.getLogger("asyncio").warning("took %s", "long")
    assert stream.getvalue().endswith(
        'level=warning event=message logger=asyncio message="took long"\n'
    )


def test_a_secret_does_not_show(stream: io.StringIO) -> None:
    assert "hidden" not in logged(stream, "kv", secret=Secret(b"hidden", Path("x")))


def test_configuring_again_replaces_the_handler(stream: io.StringIO) -> None:
    logged(stream, "kv")
    second = io.StringIO()
    logs.configure("json", stream=second)
    logs.log_event(LOGGER, logging.INFO, "logout")
    assert "logout" not in stream.getvalue()
    assert json.loads(second.getvalue())["event"] == "logout"


def test_levels_below_are_dropped(stream: io.StringIO) -> None:
    logs.configure("kv", logging.WARNING, stream)
    logs.log_event(LOGGER, logging.INFO, "login")
    assert stream.getvalue() == ""


def flood(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *moments_s: float) -> list[str]:
    """The lines that are left of an event logged at these moments."""
    logs.configure("kv", stream=stream)
    for moment_s in moments_s:
        monkeypatch.setattr("time.time", lambda at=moment_s: 1.8e9 + at)
        monkeypatch.setattr("time.time_ns", lambda at=moment_s: int((1.8e9 + at) * 1e9))
        logs.log_event(LOGGER, logging.ERROR, "flood", at=moment_s)
    return [line.partition(" at=")[2] for line in stream.getvalue().splitlines()]


def test_too_many_of_a_kind_are_counted(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [float(n) / 1000 for n in range(logs.LINES_MAX + 7)]
    lines = flood(stream, monkeypatch, *many, 9.9, 10.0, 10.1)
    assert len(lines) == logs.LINES_MAX + 2
    assert lines[-2:] == ["10 left_out=8", "10.1"]


def test_a_clock_that_goes_back_loses_nothing(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(flood(stream, monkeypatch, *[1000.0] * logs.LINES_MAX, 5.0, 5.0)) == 102


def test_kinds_are_told_apart(stream: io.StringIO) -> None:
    logs.configure("kv", stream=stream)
    for disk in ("quorum", "data"):
        for _ in range(2 * logs.LINES_MAX):
            LOGGER.error("storage of %s: %s", disk, "full")
    for number in range(3000):  # of texts that never end nothing is kept
        LOGGER.error(f"one of many: {number}")
    assert stream.getvalue().count("storage of quorum") == logs.LINES_MAX
    assert stream.getvalue().count("storage of data") == logs.LINES_MAX
    assert stream.getvalue().count("one of many") == 3000
