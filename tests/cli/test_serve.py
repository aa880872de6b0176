"""`serve`: what it prints where, and how it ends, over an application that is a stand-in."""

import errno
import importlib
import io
import json
import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from pyiscsi_target.app import StartError
from pyiscsi_target.cli import main
from pyiscsi_target.server.config import Config
from pyiscsi_target.server.overview import Overview, overview_of

CONFIG = """
[disks.a]
path = "ram:"
size = "1 GiB"
[targets."iqn.2026-11.lab.example:x"]
luns = { 0 = "a" }
"""


class Application:
    """Serves nothing and stops at once."""

    fault: str | None = None
    calls: list[str]

    def __init__(self, config: Config, base_dir: Path) -> None:
        self.config = config
        Application.calls = []

    async def start(self) -> None:
        if self.fault:
            raise StartError(self.fault)

    def overview(self) -> Overview:
        return overview_of(self.config, {}, ["127.0.0.1:45123"])

    async def run_until_stopped(self) -> None:
        self.calls.append("run")

    async def drain(self) -> None:
        self.calls.append("drain")


@pytest.fixture(autouse=True)
def application(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Application]]:
    command = importlib.import_module("pyiscsi_target.cli.serve")
    monkeypatch.setattr(command, "Application", Application)
    monkeypatch.setattr(Application, "fault", None)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield Application
    root.handlers[:] = handlers
    root.setLevel(level)


def serve(directory: Path, *options: str) -> Result:
    path = directory / "config.toml"
    path.write_text(CONFIG)
    return CliRunner().invoke(main, ["serve", str(path), *options])


def test_it_prints_what_it_serves_and_drains(
    tmp_path: Path, application: type[Application]
) -> None:
    result = serve(tmp_path)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "iqn.2026-11.lab.example:x",
        "  luns: 0: a, 1 GiB, volatile",
        "  admitted: nobody",
        "  terms: -",
        "portals: 127.0.0.1:45123",
    ]
    assert application.calls == ["run", "drain"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EPIPE])
def test_it_serves_though_nothing_can_be_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, application: type[Application], error: int
) -> None:
    """Its output goes into a file on a full disk, or to a program that has ended."""

    class Unwritable(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(error, os.strerror(error))

    console = partial(Console, file=Unwritable())
    monkeypatch.setattr(importlib.import_module("pyiscsi_target.cli.serve"), "Console", console)
    monkeypatch.setattr(Console, "on_broken_pipe", _exit)  # without closing the tests' own output
    assert serve(tmp_path).exit_code == 0
    assert application.calls == ["run", "drain"]


def _exit(console: Console) -> None:
    raise SystemExit(1)


def test_it_says_that_a_target_admits_nobody(tmp_path: Path) -> None:
    (line,) = serve(tmp_path).stderr.splitlines()
    assert "level=warning event=config_warning" in line
    assert 'message="admits nobody; add initiators = [...]"' in line


def test_json_lines(tmp_path: Path) -> None:
    (line,) = serve(tmp_path, "--log-format", "json").stderr.splitlines()
    fields = json.loads(line)
    assert (fields["event"], fields["line"]) == ("config_warning", 5)


def test_a_failed_start_is_status_1(tmp_path: Path, application: type[Application]) -> None:
    application.fault = "127.0.0.1:3260: Address already in use"
    result = serve(tmp_path)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert 'event=start_failed error="127.0.0.1:3260: Address already in use"' in result.stderr
    assert application.calls == []
