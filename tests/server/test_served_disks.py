"""Disks that share a parent, and disks whose changes are thrown away."""

import asyncio
import hashlib
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyiscsi_target.app import Application, StartError
from pyiscsi_target.server import served_disks
from pyiscsi_target.server.control import ask
from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.create import NewImage, create_image, format_of
from pyiscsi_target.storage.open import open_image
from pyiscsi_target.storage.vhdx_create import Kind
from tests.support.live import MIB, config_of, serving
from tests.support.peer import Peer
from tests.support.raw_initiator import read_16, write_16

SIZE = 64 * MIB


async def make_golden(directory: Path, suffix: str) -> Path:
    path = directory / f"golden{suffix}"
    create_image(path, NewImage(format_of(path), Kind.DYNAMIC, SIZE))
    disk = open_image(path, read_only=False)
    await disk.write(0, [b"golden".ljust(512, b"\0")])
    await disk.close()
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def write(peer: Peer, lun: int, data: bytes) -> None:
    while (await peer.command(bytes(6), lun=lun)).status:
        pass
    assert not (await peer.command(write_16(0, 1), data=data.ljust(512, b"\0"), lun=lun)).status


async def read(peer: Peer, lun: int) -> bytes:
    while (await peer.command(bytes(6), lun=lun)).status:
        pass
    return (await peer.command(read_16(0, 1), read_bytes=512, lun=lun)).data.rstrip(b"\0")


async def refusal(directory: Path, disks: dict[str, dict[str, Any]]) -> str:
    with pytest.raises(StartError) as refused:
        await Application(config_of(directory, disks=disks), directory).start()
    return str(refused.value)


@pytest.mark.parametrize("suffix", [".vhd", ".vhdx"])
async def test_children_of_one_golden_image(tmp_path: Path, suffix: str) -> None:
    golden = await make_golden(tmp_path, suffix)
    before = digest(golden)
    disks: dict[str, dict[str, Any]] = {
        name: {"path": f"nodes/{name}{suffix}", "differencing_of": golden.name} for name in "ab"
    }
    for _ in range(2):  # made the first time, found the second time
        async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
            peer = await live.log_in()
            assert await read(peer, 1) == b"golden"
            await write(peer, 0, b"changed")
            assert await read(peer, 0) == b"changed"
            assert await read(peer, 1) == b"golden"
    assert digest(golden) == before
    disks["a"]["differencing_of"] = (await make_golden(tmp_path / "nodes", suffix)).relative_to(
        tmp_path
    )
    assert "does not descend from" in await refusal(tmp_path, disks)


@pytest.mark.parametrize("suffix", [".vhd", ".vhdx"])
async def test_snapshots_come_between_a_child_and_its_golden_image(
    tmp_path: Path, suffix: str
) -> None:
    golden = await make_golden(tmp_path, suffix)
    disks = {"a": {"path": f"a{suffix}", "differencing_of": golden.name}}
    state_dir = config_of(tmp_path, disks=disks).server.state_dir
    async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
        peer = await live.log_in()
        for name in ("one", "two"):
            await write(peer, 0, name.encode())
            await asyncio.to_thread(ask, state_dir, "snapshot", disks=["a"], snapshot=name)
        assert await read(peer, 0) == b"two"
    async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
        assert await read(await live.log_in(), 0) == b"two"
        await asyncio.to_thread(ask, state_dir, "restore", disks=["a"], snapshot="one", force=True)
        assert await read(await live.log_in(), 0) == b"one"


async def test_a_golden_image_that_is_not_there(tmp_path: Path) -> None:
    disks = {"a": {"path": "a.vhdx", "differencing_of": "golden.vhdx"}}
    assert f"{tmp_path / 'golden.vhdx'}: No such file" in await refusal(tmp_path, disks)
    assert not (tmp_path / "a.vhdx").exists()


@pytest.mark.parametrize("suffix", [".img", ".vhd", ".vhdx"])
async def test_changes_that_are_thrown_away(tmp_path: Path, suffix: str) -> None:
    """Two disks share one file, and each has changes of its own while it is served."""
    golden = await make_golden(tmp_path, suffix)
    before = digest(golden)
    disks = {name: {"path": golden.name, "discard_on_exit": True} for name in "ab"}
    for _ in range(2):
        async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
            peer = await live.log_in()
            assert await read(peer, 0) == b"golden"
            await write(peer, 0, b"changed")
            await write(peer, 1, b"another")
            assert not (await peer.command(bytes.fromhex("35000000000000000000"))).status
            assert [await read(peer, lun) for lun in (0, 1)] == [b"changed", b"another"]
    assert digest(golden) == before
    assert sorted(os.listdir(tmp_path)) == ["config.toml", golden.name, "state"]


async def test_a_missing_file_is_created_before_changes_to_it_are_thrown_away(
    tmp_path: Path,
) -> None:
    disks = {"a": {"path": "a.vhdx", "size": SIZE, "discard_on_exit": True}}
    async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
        peer = await live.log_in()
        await write(peer, 0, b"changed")
        assert "volatile" in live.app.overview().targets[0].luns[0]
    disk = open_image(tmp_path / "a.vhdx", read_only=True)
    into = bytearray(512)
    await disk.read(0, memoryview(into))
    await disk.close()
    assert into == bytes(512)


async def test_a_disk_that_cannot_be_closed_well_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = {"a": {"path": "a.vhdx", "size": SIZE}}
    async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
        peer = await live.log_in()
        await write(peer, 0, b"before")
        served, store = live.app._disks, live.app._units["a"].store
        close = store.close

        async def fail() -> None:
            await close()
            raise StorageError(StorageFault.MEDIUM, "the last flush failed")

        monkeypatch.setattr(store, "close", fail)
        async with live.app._units["a"].tasks.hold():
            with pytest.raises(StorageError, match="the last flush failed"):
                await served.exchange("a", lambda: None)
        assert await read(peer, 0) == b"before"


async def test_a_disk_that_is_gone_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its image cannot be opened again after a request: NOT READY until it can."""
    monkeypatch.setattr(served_disks, "RETURN_INTERVAL_S", 0.001)
    image, aside = tmp_path / "a.vhdx", tmp_path / "aside.vhdx"
    async with serving(
        config_of(tmp_path, disks={"a": {"path": "a.vhdx", "size": SIZE}}), tmp_path
    ) as live:
        live.allowed_error = ""
        peer = await live.log_in()
        await write(peer, 0, b"before")
        async with live.app._units["a"].tasks.hold():
            with pytest.raises(StorageError, match=r"(?i)no such file"):
                await live.app._disks.exchange("a", partial(os.rename, image, aside))
        assert (await peer.command(read_16(0, 1), read_bytes=512)).asc == (0x04, 0x00)
        os.rename(aside, image)
        await live.until(lambda: bool(live.events("disk_back")))
        assert await read(peer, 0) == b"before"
