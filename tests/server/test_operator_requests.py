"""What an operator asks of a running server, with sessions in the middle of their work.

Reservations are asked for in tests/cli/test_reservations.py.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pyiscsi_target.server.control import ControlError, Json, ask
from tests.support.live import MIB, Live, config_of, serving
from tests.support.raw_initiator import read_16, write_16

SIZE = MIB
READ_CAPACITY_10 = bytes.fromhex("25000000000000000000")
DISKS: dict[str, dict[str, Any]] = {
    "disk": {"path": "disk.img", "size": SIZE},
    "fixed": {"path": "fixed.img", "size": SIZE, "read_only": True},
}


async def request(live: Live, name: str, **arguments: object) -> Json:
    return await asyncio.to_thread(ask, live.app._config.server.state_dir, name, **arguments)


async def test_a_disk_grows_under_a_session(tmp_path: Path) -> None:
    disks = {"disk": DISKS["disk"]}
    async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
        one, two = await live.log_in(), await live.log_in(isid=bytes.fromhex("400001370001"))
        answer = await request(live, "resize", disk="disk", size_bytes=2 * SIZE)
        assert answer == {"disk": "disk", "before_bytes": SIZE, "size_bytes": 2 * SIZE}
        for peer in (one, two):
            assert (await peer.command(bytes(6))).asc == (0x2A, 0x09)
            done = await peer.command(READ_CAPACITY_10, read_bytes=8)
            assert int.from_bytes(done.data[:4]) == 2 * SIZE // 512 - 1
        last = 2 * SIZE // 512 - 1
        assert not (await one.command(write_16(last, 1), data=b"z" * 512)).status
        assert (await two.command(read_16(last, 1), read_bytes=512)).data == b"z" * 512
    assert (tmp_path / "disk.img").stat().st_size == 2 * SIZE


async def test_a_disk_shrinks_where_it_is_empty(tmp_path: Path) -> None:
    disks = {"disk": DISKS["disk"]}
    async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
        peer = await live.log_in()
        middle = SIZE // 2 // 512
        assert not (await peer.command(write_16(middle, 1), data=b"z" * 512)).status
        with pytest.raises(ControlError, match=r"keeps its size: .*disk.img: holds data at byte"):
            await request(live, "resize", disk="disk", size_bytes=SIZE // 2)
        assert not (await peer.command(read_16(middle, 1), read_bytes=512)).status
        await request(live, "resize", disk="disk", size_bytes=3 * SIZE // 4)
        await peer.ready()
        gone = 3 * SIZE // 4 // 512
        assert (await peer.command(read_16(gone, 1), read_bytes=512)).asc == (0x21, 0x00)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"disk": "dusk", "size_bytes": SIZE}, "no disk 'dusk' is served; there are: disk, fixed"),
        ({"size_bytes": SIZE}, "no disk None"),
        ({"disk": "disk"}, "multiple of 512 bytes, not None"),
        ({"disk": "disk", "size_bytes": SIZE + 1}, "multiple of 512"),
        ({"disk": "disk", "size_bytes": 0}, "multiple of 512"),
        ({"disk": "disk", "size_bytes": 512 << 70}, "more than a file can have"),
        ({"disk": "disk", "size_bytes": "1G"}, "multiple of 512"),
        ({"disk": "fixed", "size_bytes": 2 * SIZE}, "'fixed' is read only"),
    ],
)
async def test_sizes_that_are_refused(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    (tmp_path / "fixed.img").write_bytes(bytes(SIZE))
    async with serving(config_of(tmp_path, disks=DISKS), tmp_path) as live:
        with pytest.raises(ControlError, match=message):
            await request(live, "resize", **arguments)
