"""`check`: the verdict, its streams and its exit status."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from pyiscsi_target.cli import main

ROOT = Path(__file__).resolve().parents[2]
SOUND = """
[disks.a]
path = "disks/a.img"
size = 512
[targets."iqn.2026-11.lab.example:x"]
luns = { 1 = "a" }
initiators = ["*"]
"""


def write(directory: Path, text: str) -> str:
    path = directory / "config.toml"
    path.write_text(text)
    return str(path)


def test_a_sound_config(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND)
    result = CliRunner().invoke(main, ["check", path])
    assert result.exit_code == 0
    assert result.stdout == f"{path}: OK: 1 target, 1 disk, 2 portals\n"
    assert result.stderr.startswith(f"{path}:6: targets.")
    assert result.stderr.endswith("[warning]\n")


def test_nothing_is_created(tmp_path: Path) -> None:
    CliRunner().invoke(main, ["check", write(tmp_path, SOUND)])
    assert [file.name for file in tmp_path.iterdir()] == ["config.toml"]


@pytest.mark.parametrize("command", ["check", "serve"])
def test_mistakes_end_with_status_2_and_nothing_started(tmp_path: Path, command: str) -> None:
    path = write(tmp_path, "[server]\nport = 1\n[disk]\n")
    result = CliRunner().invoke(main, [command, path])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{path}:2: server.port: is not a known key; did you mean 'portals'?",
        f"{path}:3: disk: is not a known key; did you mean 'disks'?",
        "2 mistakes; nothing was started.",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["config.toml"]


def test_a_missing_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["check", str(tmp_path / "none.toml")])
    assert result.exit_code == 2
    assert "none.toml: cannot be read: No such file" in result.stderr


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.output.startswith("pyiscsi-target, version ")
