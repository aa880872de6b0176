"""`disk resize`: files, disks of a config, and disks that are being served."""

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyiscsi_target.cli import main
from pyiscsi_target.server.config import load_config
from tests.support.live import MIB, config_of, serving

DISKS = {"data": {"path": "data.img", "size": 2 * MIB}, "memory": {"path": "ram:", "size": MIB}}


def resize(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["disk", "resize", *map(str, arguments)])


@pytest.mark.parametrize("suffix", [".img", ".vhd", ".vhdx"])
def test_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    assert CliRunner().invoke(main, ["disk", "create", str(path), "--size", "8M"]).exit_code == 0
    result = resize(path, "3 GiB")
    assert (result.exit_code, result.stdout) == (0, f"{path}: 3 GiB\n")
    assert resize(path, "5M").exit_code == 0


async def test_a_disk_that_is_served(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    async with serving(config_of(tmp_path, disks=DISKS), tmp_path) as live:
        peer = await live.log_in()
        result = await asyncio.to_thread(resize, "data", "3 MiB", "--config", config)
        assert (result.exit_code, result.stdout) == (0, "data: 3 MiB\n")
        assert (await peer.command(bytes(6))).asc == (0x2A, 0x09)
        result = await asyncio.to_thread(resize, "data", "1001", "--config", config)
        assert result.exit_code == 1
        assert "multiple of 512" in result.stderr
    assert load_config(config).disks["data"].size_bytes == 3 * MIB  # or it would not start again
    async with serving(load_config(config), tmp_path):
        pass


@pytest.mark.parametrize("suffix", [".img", ".vhdx"])
async def test_a_size_that_a_restore_brings_back(tmp_path: Path, suffix: str) -> None:
    """Served or not, the config says the size that there is, or the server would not start."""
    disks = {"data": {"path": f"data{suffix}", "size": 8 * MIB}}
    config = tmp_path / "config.toml"

    async def disk(*arguments: str) -> None:
        command = ["disk", *arguments, "--config", str(config)]
        result = await asyncio.to_thread(CliRunner().invoke, main, command)
        assert result.exit_code == 0, result.output

    async with serving(config_of(tmp_path, disks=disks), tmp_path):
        await disk("snapshot", "small", "data")
        await disk("resize", "data", "9 MiB")
        await disk("restore", "small", "data")
        assert load_config(config).disks["data"].size_bytes == 8 * MIB
        await disk("resize", "data", "9 MiB")
    await disk("restore", "small", "data")
    assert load_config(config).disks["data"].size_bytes == 8 * MIB
    async with serving(load_config(config), tmp_path):
        pass


def test_a_disk_that_is_not_served(tmp_path: Path) -> None:
    config_of(tmp_path, disks=DISKS)
    config = tmp_path / "config.toml"
    text = config.read_text() + "# the end\n"
    config.write_text(text)
    (tmp_path / "data.img").write_bytes(bytes(2 * MIB))
    assert resize("data", "4 GiB", "--config", config).exit_code == 0
    assert config.read_text() == text.replace(str(2 * MIB), '"4 GiB"')
    assert (tmp_path / "data.img").stat().st_size == 4 << 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "data.img"]


@pytest.mark.parametrize(
    ("disk", "message"), [("dota", "has no such disk"), ("memory", "is in memory")]
)
def test_disks_that_cannot_be(tmp_path: Path, disk: str, message: str) -> None:
    config_of(tmp_path, disks=DISKS)
    result = resize(disk, "1G", "--config", tmp_path / "config.toml")
    assert result.exit_code == 2
    assert f"disks.{disk}: {message}" in result.stderr


def test_a_config_that_cannot_be_written(tmp_path: Path) -> None:
    """The disk has its new size, and the operator knows what is missing."""
    config_of(tmp_path, disks=DISKS)
    config = tmp_path / "config.toml"
    (tmp_path / "data.img").write_bytes(bytes(2 * MIB))
    (tmp_path / ".config.toml.tmp").mkdir()
    result = resize("data", "3M", "--config", config)
    assert result.exit_code == 1
    assert f"disks.data.size must become {3 * MIB}" in result.stderr
