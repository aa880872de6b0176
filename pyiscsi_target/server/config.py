"""Reading a config file: every mistake in one go, each with line, key and what would be right.

The models are in `config_model`; this module turns their complaints, and those that only the
whole file shows, into `Problem`s. It changes nothing on disk and starts nothing.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..storage import open as storage
from . import names
from .config_advice import advise
from .config_lines import KeyLines, KeyPath, spell
from .config_messages import Complaint, complaint
from .config_model import (
    Authentication,
    ChapConfig,
    Config,
    DiskConfig,
    InitiatorRule,
    LoadContext,
    ServerConfig,
    TargetConfig,
    TargetLimits,
)
from .config_values import Endpoint, Secret, format_size, parse_size

__all__ = [
    "Authentication",
    "ChapConfig",
    "Config",
    "ConfigError",
    "DiskConfig",
    "Endpoint",
    "InitiatorRule",
    "Problem",
    "Secret",
    "ServerConfig",
    "TargetConfig",
    "TargetLimits",
    "format_size",
    "load_config",
    "parse_size",
    "warnings_of",
]

MAX_CONFIG_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong, or doubtful, in a config file; `line` counts from 1, None: the whole."""

    line: int | None
    key: str
    message: str

    def describe(self, path: Path) -> str:
        """`file:line: key: message`."""
        place = f"{path}:{self.line}" if self.line is not None else str(path)
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class ConfigError(Exception):
    """The file cannot be served; `problems` holds all that is wrong with it, in line order."""

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        super().__init__("\n".join(problem.describe(path) for problem in problems))
        self.path = path
        self.problems = problems


def load_config(path: Path) -> Config:
    """The config that the file at `path` states. Raises ConfigError with every mistake in it."""
    text = _read_text(path)
    data = _parse(path, text)
    disks = data.get("disks")
    context = LoadContext(
        base_dir=path.absolute().parent,
        disk_names=frozenset(disks if isinstance(disks, dict) else ()),
    )
    complaints = list(_whole_file_complaints(data, context.base_dir))
    try:
        config = Config.model_validate(_with_tuples(data), context=context)
    except ValidationError as error:
        complaints += (complaint(detail, data) for detail in error.errors(include_url=False))
    if complaints:
        raise ConfigError(path, _locate(text, complaints))
    return config


def warnings_of(config: Config, path: Path) -> list[Problem]:
    """What is allowed but likely not meant, with its lines in the file that `config` came from."""
    text = _read_text(path)
    spelt = {names.normalise(name): name for name in _parse(path, text).get("targets", {})}
    return _locate(text, [(_respell(key, spelt), why) for key, why in advise(config)])


def _respell(path: KeyPath, spelt: Mapping[str, str]) -> KeyPath:
    """`path` with the target's name as its author wrote it."""
    if len(path) > 1 and path[0] == "targets":
        return (path[0], spelt.get(str(path[1]), path[1]), *path[2:])
    return path


def _locate(text: str, complaints: list[Complaint]) -> list[Problem]:
    lines = KeyLines(text)
    problems = [Problem(lines.line_of(path), spell(path), why) for path, why in complaints]
    return sorted(problems, key=lambda problem: problem.line or 0)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise _unreadable(path, f"is larger than {format_size(MAX_CONFIG_BYTES)}")
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise _unreadable(
            path, f"is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None


def _unreadable(path: Path, why: str) -> ConfigError:
    return ConfigError(path, [Problem(None, "", why)])


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        why, place, where = str(error).partition(" (at ")
        found = re.search(r"line (\d+)", where)
        line = int(found[1]) if found else text.rstrip().count("\n") + 1
        detail = f" ({where.removesuffix(')')})" if place else ""
        raise ConfigError(path, [Problem(line, "", f"is not TOML: {why}{detail}")]) from None


def _with_tuples(value: Any) -> Any:
    """The document with tuples for lists: the models are immutable and take nothing else."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value


def _whole_file_complaints(data: dict[str, Any], base_dir: Path) -> Iterator[Complaint]:
    """What no single table shows. Looks at the raw data, so that other mistakes hide nothing."""
    disks, targets = _tables(data.get("disks")), _tables(data.get("targets"))
    files = [
        (name, _file_of(disk.get("path"), base_dir))
        for name, disk in disks
        if disk.get("discard_on_exit") is not True  # those may share a file
    ]
    for name, first in _repeated(files):
        yield (
            ("disks", name, "path"),
            f"is the file of disk {first!r} too; give each disk a file of its own",
        )
    for name, first in _repeated([(name, disk.get("serial")) for name, disk in disks]):
        yield (
            ("disks", name, "serial"),
            f"is the serial number of disk {first!r} too; hosts would take them for one disk",
        )
    for name, first in _repeated([(name, names.normalise(name)) for name, _ in targets]):
        yield ("targets", name), f"is the same name as {first!r}; give each target its own"


def _file_of(path: object, base_dir: Path) -> str | None:
    if not isinstance(path, str) or not path or storage.is_volatile(path):
        return None
    return os.path.realpath(storage.resolve_path(path, base_dir))


def _repeated(values: Iterable[tuple[str, object]]) -> Iterator[tuple[str, str]]:
    """(name, the first name with the same value) for every repeated value; None is no value."""
    owners: dict[str, str] = {}
    for name, value in values:
        if isinstance(value, str) and owners.setdefault(value, name) != name:
            yield name, owners[value]


def _tables(section: object) -> list[tuple[str, dict[str, Any]]]:
    tables = section.items() if isinstance(section, dict) else ()
    return [(name, table) for name, table in tables if isinstance(table, dict)]
