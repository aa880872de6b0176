"""This project's server as a child process: a config is written, ports are read from its log."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.process import Child, child

ROOT = Path(__file__).resolve().parents[2]
TARGET = "iqn.2026-11.example.test:disks"

LISTENING = r"event=listening\b.*\bportal=\"?(?P<host>\[[^\]]+\]|[^:\s\"]+):(?P<port>\d+)"


def toml_value(value: Any) -> str:
    """A TOML value; strings, numbers, booleans and arrays are spelled as in JSON."""
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(str(key))} = {toml_value(item)}" for key, item in value.items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, Path):
        return json.dumps(str(value))
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value)


def toml_document(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """A TOML document of named tables; the names are written as given."""
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {toml_value(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    )


@dataclass
class Setup:
    """What to serve: disks by name and what the one target says of them."""

    disks: Mapping[str, Mapping[str, Any]]
    luns: Mapping[int, str] | None = None  # None: the disks in order, from LUN 0
    target: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    portals: Sequence[str] = ("127.0.0.1:0",)

    def document(self, directory: Path) -> str:
        luns = self.luns if self.luns is not None else dict(enumerate(self.disks))
        tables: dict[str, Mapping[str, Any]] = {
            "server": {"portals": self.portals, "state_dir": directory / "state", **self.server}
        }
        tables.update({f"disks.{name}": disk for name, disk in self.disks.items()})
        tables[f'targets."{TARGET}"'] = {"luns": luns, "initiators": ["*"], **self.target}
        return toml_document(tables)

    def write(self, directory: Path) -> Path:
        path = directory / "config.toml"
        path.write_text(self.document(directory), encoding="utf-8")
        return path


def serve_command(config: Path, *, python: str | Path = sys.executable) -> list[str | Path]:
    return [python, "-m", "pyiscsi_target", "serve", config]


@dataclass
class Server:
    """A server that is ready, and where it listens."""

    process: Child
    portals: list[str]

    @property
    def portal(self) -> str:
        return self.portals[0]

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.portal.rpartition(":")
        return host.strip("[]"), int(port)

    def url(self, lun: int = 0, *, credentials: str = "", portal: int = 0) -> str:
        """A libiscsi URL; `credentials` is `user%secret`."""
        at = f"{credentials}@" if credentials else ""
        return f"iscsi://{at}{self.portals[portal]}/{TARGET}/{lun}"


Serve = Callable[[Setup], Server]  # what the `serve` fixture gives


def portals_of(process: Child) -> list[str]:
    return [f"{match['host']}:{match['port']}" for match in process.matches(LISTENING)]


@contextlib.contextmanager
def serving(
    setup: Setup,
    directory: Path,
    *,
    command: Sequence[str | Path] | None = None,
    source: Path = ROOT,
) -> Iterator[Server]:
    """A ready server over `setup`; ended by SIGTERM, and certainly gone afterwards.

    `command` goes before the server's own (`taskset -c 0`); `source` is the tree to run.
    """
    config = setup.write(directory)
    full = [*(command or ()), *serve_command(config)]
    with child(full, cwd=directory, env={"PYTHONPATH": str(source)}) as process:
        process.wait_for_line(r"event=ready\b")
        server = Server(process, portals_of(process))
        yield server
        if process.running:
            status = process.stop()
            assert status == 0, f"drained with exit {status}:\n{process.output}"


def events(process: Child, name: str) -> list[dict[str, str]]:
    """The log lines of one event, as key and value."""
    pairs = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')
    return [
        {key: value.strip('"') for key, value in pairs.findall(match.string)}
        for match in process.matches(rf"event={re.escape(name)}\b")
    ]
