"""The commands of `pyiscsi-target disk`, run in this process."""

import json
from pathlib import Path

from click.testing import CliRunner, Result

from pyiscsi_target.cli import main


def disk(*arguments: object) -> Result:
    """Run it."""
    return CliRunner().invoke(main, ["disk", *map(str, arguments)])


def done(*arguments: object) -> str:
    """What it prints when it succeeds."""
    result = disk(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object, status: int = 1) -> str:
    """What it says when it fails."""
    result = disk(*arguments)
    assert result.exit_code == status, result.output
    return result.stderr


def told(path: Path) -> dict[str, object]:
    """What `info` says."""
    told: dict[str, object] = json.loads(done("info", path, "--json"))
    return told


def names(directory: Path) -> list[str]:
    """What is in the directory."""
    return sorted(path.name for path in directory.iterdir())
