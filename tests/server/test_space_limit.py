"""A disk whose image may not grow beyond a limit: as on a full host, and only this disk."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from pyiscsi_target.server import served_disks
from tests.support.live import MIB, Live, config_of, serving
from tests.support.peer import Peer
from tests.support.raw_initiator import read_16, write_16

SIZE_BYTES, BLOCK = 256 * MIB, 512
LIMIT_BYTES = 80 * MIB
GOOD, CHECK_CONDITION = 0, 2
SPACE_ALLOCATION_FAILED, SOFT_THRESHOLD_REACHED = (0x27, 0x07), (0x38, 0x07)


@contextlib.asynccontextmanager
async def limited(tmp_path: Path, suffix: str) -> AsyncIterator[tuple[Live, Peer]]:
    disks = {
        name: {"path": f"{name}{suffix}", "size": SIZE_BYTES, "space_warning": 0, **keys}
        for name, keys in (("limited", {"space_limit": LIMIT_BYTES}), ("free", {}))
    }
    async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
        live.allowed_error = "storage of limited: "
        peer = await live.log_in()
        for lun in (0, 1):
            while (await peer.command(bytes(6), lun=lun)).status:
                pass
        yield live, peer


async def fill_up(peer: Peer, lun: int = 0) -> int:
    """Write a block in every MiB until one fails, and say where; all of them where none does."""
    for lba in range(0, SIZE_BYTES // BLOCK, MIB // BLOCK):
        done = await peer.command(write_16(lba, 1), data=lba.to_bytes(BLOCK), lun=lun)
        if done.status != GOOD:
            assert (done.status, done.asc) == (CHECK_CONDITION, SPACE_ALLOCATION_FAILED)
            return lba
    return SIZE_BYTES // BLOCK


@pytest.mark.parametrize("suffix", [".vhd", ".vhdx"])
async def test_a_disk_at_its_limit(tmp_path: Path, suffix: str) -> None:
    async with limited(tmp_path, suffix) as (live, peer):
        full_at = await fill_up(peer)
        assert 16 * MIB <= full_at * BLOCK <= LIMIT_BYTES
        assert (tmp_path / f"limited{suffix}").stat().st_size <= LIMIT_BYTES + BLOCK
        for lba in range(0, full_at, MIB // BLOCK):  # what has its room goes on
            assert not (await peer.command(write_16(lba, 1), data=b"again".ljust(BLOCK))).status
            done = await peer.command(read_16(lba, 1), read_bytes=BLOCK)
            assert done.data == b"again".ljust(BLOCK)
        assert await fill_up(peer, lun=1) == SIZE_BYTES // BLOCK
        await live.app._units["limited"].store.deallocate(0, full_at * BLOCK // 2)
        await live.app._units["limited"].store.flush()
        done = await peer.command(write_16(full_at, 1), data=b"room".ljust(BLOCK))
        assert done.status == GOOD


async def test_what_is_left_of_the_limit_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_disks, "WATCH_INTERVAL_S", 0.001)
    async with limited(tmp_path, ".vhdx") as (live, peer):
        for unit in live.app._units.values():
            unit.settings = replace(unit.settings, space_warning_bytes=LIMIT_BYTES // 2)
        for lba in range(0, 60 * MIB // BLOCK, MIB // BLOCK):
            await live.app._units["limited"].store.write(lba * BLOCK, [b"x" * BLOCK])
        limited_unit, free_unit = (live.app._units[name] for name in ("limited", "free"))
        await live.until(lambda: limited_unit._space_is_low)
        assert (await peer.command(bytes(6))).asc == SOFT_THRESHOLD_REACHED
        assert not free_unit._space_is_low
