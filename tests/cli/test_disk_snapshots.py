"""`disk snapshot`, `restore`, `snapshots`, `delete-snapshot`: through a server and on files."""

import asyncio
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from pyiscsi_target.cli.disk_snapshots import (
    delete_command,
    list_command,
    restore_command,
    snapshot_command,
)
from pyiscsi_target.storage.check import check_image
from pyiscsi_target.storage.create import NewImage, create_image, format_of
from pyiscsi_target.storage.lock import locked
from pyiscsi_target.storage.open import open_image
from pyiscsi_target.storage.vhdx_create import Kind
from tests.support.live import MIB, config_of, serving
from tests.support.raw_initiator import read_16, write_16

DISKS: dict[str, dict[str, Any]] = {
    name: {"path": f"{name}.img", "size": MIB} for name in ("quorum", "data")
}


def invoke(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_files_that_nobody_serves(tmp_path: Path) -> None:
    images = [tmp_path / "a.img", tmp_path / "b.img"]
    for image in images:
        image.write_bytes(b"first")
    result = invoke(snapshot_command, "one", *images)
    assert result.exit_code == 0, result.output
    assert result.stdout == "".join(f"{image}: snapshot one taken\n" for image in images)
    for image in images:
        image.write_bytes(b"later")
    assert invoke(restore_command, "one", images[0]).exit_code == 0
    assert [image.read_bytes() for image in images] == [b"first", b"later"]
    listed = json.loads(invoke(list_command, *images, "--json").stdout)
    assert [[one["name"] for one in listed[str(image)]] for image in images] == [["one"]] * 2
    assert invoke(delete_command, "one", *images).exit_code == 0
    assert invoke(list_command, images[0]).stdout == f"{images[0]}: no snapshots\n"


async def test_a_file_that_was_not_closed_cleanly(tmp_path: Path) -> None:
    """Its log is replayed first: the snapshot is read-only from then on, for other programs too."""
    served, image = tmp_path / "served.vhdx", tmp_path / "a.vhdx"
    create_image(served, NewImage(format_of(served), Kind.DYNAMIC, 64 * MIB))
    disk = open_image(served, read_only=False)
    await disk.write(MIB, [b"first".ljust(512)])
    image.write_bytes(served.read_bytes())  # as a killed process leaves it
    await disk.close()
    assert await check_image(image)
    result = await asyncio.to_thread(invoke, snapshot_command, "one", image)
    assert result.exit_code == 0, result.output
    assert not await check_image(tmp_path / "a@one.vhdx")
    disk = open_image(image, read_only=True)
    into = bytearray(512)
    await disk.read(MIB, memoryview(into))
    await disk.close()
    assert into.startswith(b"first")


def test_what_goes_wrong_is_one_line(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    result = invoke(snapshot_command, "one", image)
    assert (result.exit_code, result.stderr) == (1, f"{image}: No such file or directory\n")
    image.write_bytes(b"first")
    result = invoke(restore_command, "one", image)
    assert result.exit_code == 1
    assert "no such snapshot of a.img; there are: none" in result.stderr
    with locked(image):
        result = invoke(snapshot_command, "one", image)
    assert (result.exit_code, result.stderr) == (1, f"{image}: in use by another process\n")
    assert list(tmp_path.iterdir()) == [image]


def test_none_is_changed_where_one_cannot_be(tmp_path: Path) -> None:
    images = [tmp_path / "a.img", tmp_path / "b.img"]
    for image in images:
        image.write_bytes(b"first")
    invoke(snapshot_command, "one", images[0])
    images[0].write_bytes(b"later")
    assert invoke(restore_command, "one", *images).exit_code == 1
    assert images[0].read_bytes() == b"later"


async def test_disks_that_are_served(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, disks=DISKS), tmp_path) as live:
        peer = await live.log_in()
        config = tmp_path / "config.toml"
        path = tmp_path / "data.img"

        async def run(command: click.Command, *arguments: object) -> Result:
            return await asyncio.to_thread(invoke, command, *arguments, "--config", config)

        assert not (await peer.command(write_16(0, 1), data=b"a" * 512)).status
        result = await run(snapshot_command, "start", "quorum", "data")
        assert result.stdout == "quorum: snapshot start taken\ndata: snapshot start taken\n"
        assert not (await peer.command(write_16(0, 1), data=b"b" * 512)).status
        result = await run(restore_command, "start", "quorum", "data")
        assert result.exit_code == 1
        assert "'quorum' is in use by" in result.stderr
        assert (await run(restore_command, "start", "quorum", "data", "--force")).exit_code == 0
        assert (await peer.command(bytes(6))).asc == (0x28, 0x00)
        done = await peer.command(read_16(0, 1), read_bytes=512)
        assert done.data == b"a" * 512
        assert "start  20" in (await run(list_command, "data")).stdout
        result = await asyncio.to_thread(invoke, snapshot_command, "two", path)
        assert result.stderr == f"{path}: in use by another process\n"
        assert (await run(delete_command, "start", "data")).exit_code == 0
    assert invoke(restore_command, "start", "quorum", "--config", config).exit_code == 0


@pytest.mark.parametrize(
    ("disk", "message"), [("dota", "has no such disk"), ("memory", "is in memory")]
)
def test_disks_that_the_config_does_not_have(tmp_path: Path, disk: str, message: str) -> None:
    config_of(tmp_path, disks={"memory": {"path": "ram:", "size": MIB}})
    config = tmp_path / "config.toml"
    result = invoke(snapshot_command, "one", disk, "--config", config)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"{config}: disks.{disk}: {message}" in result.stderr


@pytest.mark.parametrize("suffix", [".vhd", ".vhdx"])
def test_images_that_know_differencing(tmp_path: Path, suffix: str) -> None:
    """In any order, and one that was cut short at its end."""
    image = tmp_path / f"data{suffix}"
    create_image(image, NewImage(format_of(image), Kind.DYNAMIC, MIB))
    for name in ("one", "two", "three"):
        assert invoke(snapshot_command, name, image).exit_code == 0
    assert invoke(restore_command, "two", image).exit_code == 0
    refused = invoke(delete_command, "two", image)
    assert refused.exit_code == 1
    assert f"data@three{suffix}, data{suffix} are made of it" in refused.stderr
    for name in ("one", "three", "two"):
        assert invoke(delete_command, name, image).stdout == f"{image}: snapshot {name} deleted\n"
        assert not (tmp_path / f"data@{name}{suffix}").exists()
    (tmp_path / f"data@two{suffix}.deleting").touch()
    assert invoke(delete_command, "two", image).exit_code == 0
    assert list(tmp_path.iterdir()) == [image]
    assert invoke(delete_command, "two", image).exit_code == 1


def test_a_snapshot_is_of_all_files_or_of_none(tmp_path: Path) -> None:
    images = [tmp_path / f"{name}.vhdx" for name in "ab"]
    for image in images:
        create_image(image, NewImage(format_of(image), Kind.DYNAMIC, 64 * MIB))
    assert invoke(snapshot_command, "one", images[1]).exit_code == 0
    refused = invoke(snapshot_command, "one", *images)
    assert refused.exit_code == 1
    assert refused.stderr.endswith("b@one.vhdx: there is such a snapshot already\n")
    in_the_way = tmp_path / ".b.vhdx.tmp.vhdx"
    in_the_way.mkdir()
    refused = invoke(snapshot_command, "two", *images)
    assert refused.exit_code == 1
    in_the_way.rmdir()
    assert invoke(list_command, images[0]).stdout == f"{images[0]}: no snapshots\n"
    assert invoke(snapshot_command, "two", *images).exit_code == 0


def test_a_disk_is_named_once(tmp_path: Path) -> None:
    image, link = tmp_path / "a.img", tmp_path / "link.img"
    image.write_bytes(b"first")
    link.symlink_to(image)
    for other in (image, link):
        refused = invoke(snapshot_command, "one", image, other)
        assert refused.exit_code == 2
        assert "a disk is named twice" in refused.stderr
    assert sorted(tmp_path.iterdir()) == [image, link]


@pytest.mark.parametrize("suffix", [".img", ".vhdx"])
async def test_a_link_to_a_disk(tmp_path: Path, suffix: str) -> None:
    """Snapshots lie beside the file, and the link stays a link to it."""
    image, link = tmp_path / "there" / f"a{suffix}", tmp_path / f"link{suffix}"
    image.parent.mkdir()
    create_image(image, NewImage(format_of(image), Kind.DYNAMIC, 64 * MIB))
    link.symlink_to(image)
    for command in (snapshot_command, restore_command):
        result = await asyncio.to_thread(invoke, command, "one", link)
        assert result.exit_code == 0, result.output
        assert link.readlink() == image
        assert sorted(path.name for path in image.parent.iterdir()) == [
            image.name,
            f"a@one{suffix}",
        ]
    assert (await asyncio.to_thread(invoke, delete_command, "one", link)).exit_code == 0
    assert list(image.parent.iterdir()) == [image]
