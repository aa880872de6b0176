"""Snapshots of disks that are being written to, and putting them back."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from pyiscsi_target.server.control import ControlError, Json, ask
from pyiscsi_target.storage import clone, snapshots
from tests.support.live import MIB, Live, config_of, serving
from tests.support.peer import Peer
from tests.support.raw_initiator import read_16, write_16

BOTH: dict[str, dict[str, Any]] = {
    name: {"path": f"{name}.img", "size": MIB} for name in ("quorum", "data")
}


async def request(live: Live, name: str, **arguments: object) -> Json:
    return await asyncio.to_thread(ask, live.app._config.server.state_dir, name, **arguments)


async def write(peer: Peer, content: int, lba: int = 0) -> None:
    """The same block to both disks, one after the other."""
    for lun in (0, 1):
        done = await peer.command(write_16(lba, 1), data=content.to_bytes(512), lun=lun)
        assert not done.status


async def read(peer: Peer, lun: int, lba: int = 0) -> int:
    done = await peer.command(read_16(lba, 1), read_bytes=512, lun=lun)
    assert not done.status
    return int.from_bytes(done.data)


async def ready(peer: Peer) -> None:
    for lun in (0, 1):
        while (await peer.command(bytes(6), lun=lun)).status:
            pass


async def test_two_disks_at_one_instant(tmp_path: Path) -> None:
    """A node writes record after record, to one disk and then the other, while it happens."""
    async with serving(config_of(tmp_path, disks=BOTH), tmp_path) as live:
        peer = await live.log_in()
        await ready(peer)
        stopped = asyncio.Event()

        async def node() -> int:
            content = 0
            while not stopped.is_set():
                content += 1
                await write(peer, content)
            return content

        writing = asyncio.create_task(node())
        taken = []
        for number in range(5):
            answer = await request(
                live, "snapshot", disks=["quorum", "data"], snapshot=f"s{number}"
            )
            assert answer == {"snapshot": f"s{number}", "disks": ["quorum", "data"]}
            taken.append([(tmp_path / f"{disk}@s{number}.img").read_bytes() for disk in BOTH])
        stopped.set()
        last = await writing
        assert last > 5
        for quorum, data in taken:  # the first disk is a record ahead, or both have the same
            first, second = int.from_bytes(quorum[:512]), int.from_bytes(data[:512])
            assert first - second in (0, 1)
        listed = await request(live, "snapshots", disks=["data"])
        assert [one["name"] for one in listed["snapshots"]["data"]] == [f"s{n}" for n in range(5)]
        assert await read(peer, 0) == last
        await request(live, "delete-snapshot", disks=["data", "quorum"], snapshot="s1")
        listed = await request(live, "snapshots", disks=["data"])
        assert len(listed["snapshots"]["data"]) == 4


async def test_back_to_the_start(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, disks=BOTH), tmp_path) as live:
        peer = await live.log_in()
        await ready(peer)
        await write(peer, 1)
        await request(live, "snapshot", disks=["quorum", "data"], snapshot="start")
        await write(peer, 2)
        with pytest.raises(ControlError, match=r"in use by iqn.*; log out there, or use force"):
            await request(live, "restore", disks=["quorum", "data"], snapshot="start")
        assert await read(peer, 0) == 2
        await request(live, "restore", disks=["quorum", "data"], snapshot="start", force=True)
        for lun in (0, 1):
            assert (await peer.command(bytes(6), lun=lun)).asc == (0x28, 0x00)
            assert await read(peer, lun) == 1
        await write(peer, 3)
        await peer.log_out()
        await live.until(lambda: not live.app._sessions.by_key)
        await request(live, "restore", disks=["data"], snapshot="start")
        again = await live.log_in()
        await ready(again)
        assert [await read(again, lun) for lun in (0, 1)] == [3, 1]


async def test_a_size_comes_back_too(tmp_path: Path) -> None:
    disks = {"data": BOTH["data"]}
    async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
        peer = await live.log_in()
        await request(live, "snapshot", disks=["data"], snapshot="small")
        await request(live, "resize", disk="data", size_bytes=2 * MIB)
        await request(live, "snapshot", disks=["data"], snapshot="large")
        await request(live, "restore", disks=["data"], snapshot="small", force=True)
        await peer.ready()
        assert live.app._units["data"].block_count == MIB // 512
        assert (await peer.command(read_16(MIB // 512, 1), read_bytes=512)).asc == (0x21, 0x00)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("snapshot", {"disks": ["data"], "snapshot": "../x"}, "cannot name a snapshot"),
        ("snapshot", {"disks": ["dota"], "snapshot": "x"}, "no disk 'dota' is served"),
        ("snapshot", {"disks": [["data"]], "snapshot": "x"}, "no disk .* is served"),
        ("snapshot", {"disks": [], "snapshot": "x"}, "no disk is named"),
        ("snapshot", {"disks": "data", "snapshot": "x"}, "no disk is named"),
        ("snapshot", {"disks": ["memory"], "snapshot": "x"}, "'memory' has no file of its own"),
        ("snapshots", {}, "no disk is named"),
        ("restore", {"disks": ["data"], "snapshot": "x"}, "no such snapshot of data.img"),
    ],
)
async def test_what_is_refused(
    tmp_path: Path, name: str, arguments: dict[str, Any], message: str
) -> None:
    disks = {"data": BOTH["data"], "memory": {"path": "ram:", "size": MIB}}
    async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
        with pytest.raises(ControlError, match=message):
            await request(live, name, **arguments)


async def test_a_name_that_one_disk_has_already(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, disks=BOTH), tmp_path) as live:
        await request(live, "snapshot", disks=["data"], snapshot="one")
        with pytest.raises(ControlError, match=r"disk 'data': .* there is such a snapshot already"):
            await request(live, "snapshot", disks=["quorum", "data"], snapshot="one")
        assert not (tmp_path / "quorum@one.img").exists()


@pytest.mark.parametrize("suffix", [".img", ".vhd", ".vhdx"])
async def test_a_snapshot_is_of_all_disks_or_of_none(tmp_path: Path, suffix: str) -> None:
    """The second disk has no room for it: the first one is as it was."""
    disks = {name: {"path": f"{name}{suffix}", "size": 64 * MIB} for name in BOTH}
    async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
        peer = await live.log_in()
        await ready(peer)
        await write(peer, 1)
        in_the_way = [
            tmp_path / f".data{suffix}.tmp{suffix}",
            tmp_path / f".data@one{suffix}.tmp{suffix}",
        ]
        for directory in in_the_way:
            directory.mkdir()
        with pytest.raises(ControlError, match="disk 'data': "):
            await request(live, "snapshot", disks=["quorum", "data"], snapshot="one")
        assert not (tmp_path / f"quorum@one{suffix}").exists()
        await write(peer, 2)
        assert [await read(peer, lun) for lun in (0, 1)] == [2, 2]
        for directory in in_the_way:
            directory.rmdir()
        await request(live, "snapshot", disks=["quorum", "data"], snapshot="one")


async def test_a_snapshot_that_fails_leaves_a_disk_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "COPY_LIMIT_BYTES", 0)
    monkeypatch.setattr(clone, "_share", lambda *_: False)
    async with serving(config_of(tmp_path, disks=BOTH), tmp_path) as live:
        peer = await live.log_in()
        await ready(peer)
        await write(peer, 1)
        with pytest.raises(ControlError, match="would have to be copied"):
            await request(live, "snapshot", disks=["quorum", "data"], snapshot="one")
        await write(peer, 2)
        assert await read(peer, 1) == 2


@pytest.mark.parametrize("suffix", [".vhd", ".vhdx"])
async def test_images_that_know_differencing(tmp_path: Path, suffix: str) -> None:
    """Snapshots under load: a session writes on, the image becomes a child of each."""
    disks = {"data": {"path": f"data{suffix}", "size": 64 * MIB}}
    async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
        peer = await live.log_in()
        for number in range(1, 6):
            data = number.to_bytes(512)
            assert not (await peer.command(write_16(number, 1), data=data)).status
            assert not (await peer.command(write_16(0, 1), data=data)).status
            await request(live, "snapshot", disks=["data"], snapshot=f"s{number}")
        assert [await read(peer, 0, lba) for lba in range(6)] == [5, 1, 2, 3, 4, 5]
        await request(live, "delete-snapshot", disks=["data"], snapshot="s1")  # s2 is made of it
        assert [await read(peer, 0, lba) for lba in range(6)] == [5, 1, 2, 3, 4, 5]
        await request(live, "restore", disks=["data"], snapshot="s2", force=True)
        assert (await peer.command(bytes(6))).asc == (0x28, 0x00)
        assert [await read(peer, 0, lba) for lba in range(6)] == [2, 1, 2, 0, 0, 0]
        with pytest.raises(ControlError, match=r"are made of it, .*delete other snapshots among"):
            await request(live, "delete-snapshot", disks=["data"], snapshot="s2")
        for name in ("s5", "s4", "s3", "s2"):  # of the last one the image is made
            await request(live, "delete-snapshot", disks=["data"], snapshot=name)
            assert [await read(peer, 0, lba) for lba in range(6)] == [2, 1, 2, 0, 0, 0]


@pytest.mark.parametrize("suffix", [".vhd", ".vhdx"])
async def test_a_disk_that_grew_since_its_snapshots(tmp_path: Path, suffix: str) -> None:
    """Both are deleted while a session uses the disk, and nothing is left of them."""
    disks = {"data": {"path": f"data{suffix}", "size": 8 * MIB}}
    async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
        peer = await live.log_in()
        last = 16 * MIB // 512 - 1
        assert not (await peer.command(write_16(0, 1), data=bytes(511) + b"\1")).status
        await request(live, "snapshot", disks=["data"], snapshot="s1")
        await request(live, "resize", disk="data", size_bytes=16 * MIB)
        await peer.ready()
        assert not (await peer.command(write_16(last, 1), data=bytes(511) + b"\2")).status
        await request(live, "snapshot", disks=["data"], snapshot="s2")
        for name in ("s1", "s2"):
            await request(live, "delete-snapshot", disks=["data"], snapshot=name)
            assert [await read(peer, 0, lba) for lba in (0, last)] == [1, 2]
        assert live.app._units["data"].block_count == last + 1
    assert [name for name in os.listdir(tmp_path) if "@" in name] == []


async def test_a_deletion_that_was_cut_short_at_its_end(tmp_path: Path) -> None:
    """The snapshot has gone, but not the mark of its deletion: which goes, too."""
    disks = {"data": {"path": "data.vhdx", "size": 8 * MIB}}
    async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
        mark = tmp_path / "data@s1.vhdx.deleting"
        mark.touch()
        await request(live, "delete-snapshot", disks=["data"], snapshot="s1")
        assert not mark.exists()
        with pytest.raises(ControlError, match="no such snapshot"):
            await request(live, "delete-snapshot", disks=["data"], snapshot="s1")


@pytest.mark.parametrize("suffix", [".img", ".vhd", ".vhdx"])
@pytest.mark.parametrize("becomes", ["replaced", "gone"])
async def test_the_file_at_the_path_is_not_the_one_that_is_served(
    tmp_path: Path, suffix: str, becomes: str
) -> None:
    """Taking it in the served one's place would be another disk, and no host would hear of it."""
    disks = {name: {"path": f"{name}{suffix}", "size": 64 * MIB} for name in BOTH}
    async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
        peer = await live.log_in()
        await ready(peer)
        await write(peer, 1)
        await request(live, "snapshot", disks=["data"], snapshot="zero")
        served = tmp_path / f"data{suffix}"
        served.rename(tmp_path / "moved")
        if becomes == "replaced":
            served.write_bytes((tmp_path / "moved").read_bytes())
        for name in ("snapshot", "restore", "delete-snapshot"):
            with pytest.raises(
                ControlError, match=r"disk 'data': .* is not the file that is serve"
            ):
                await request(live, name, disks=["quorum", "data"], snapshot="one", force=True)
        await write(peer, 2)
        assert [await read(peer, lun) for lun in (0, 1)] == [2, 2]
        (tmp_path / "moved").rename(served)
        await request(live, "snapshot", disks=["quorum", "data"], snapshot="one")
        assert [await read(peer, lun) for lun in (0, 1)] == [2, 2]
