"""Anchored blocks over the wire: UNMAP and WRITE SAME with ANCHOR, GET LBA STATUS, a full host."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pyiscsi_target.client import Initiator, Portal, Session
from tests.support.live import MIB, config_of, serving
from tests.support.server import TARGET
from tests.support.small_file_system import fill_up, small_file_system

BLOCK = 512
NODE = Initiator("iqn.2026-11.example.test:node")
GOOD, CHECK_CONDITION = 0, 2
ANC_SUP = 0x02  # of byte 5 of page B2h
UNMAP_AND_ANCHOR = 0x18  # of byte 1 of WRITE SAME
MAPPED, DEALLOCATED, ANCHORED = 0, 1, 2


def unmap(lba: int, blocks: int, *, anchor: bool) -> tuple[bytes, bytes]:
    data = struct.pack(">HH4xQI4x", 22, 16, lba, blocks)
    return struct.pack(">BB5xHx", 0x42, anchor, len(data)), data


def write_same(lba: int, blocks: int, flags: int) -> bytes:
    return struct.pack(">BBQI2x", 0x93, flags, lba, blocks)


async def status_of(session: Session, lun: int, lba: int) -> tuple[int, int]:
    """The provisioning status of the block, and how many have it."""
    cdb = struct.pack(">BBQI2x", 0x9E, 0x12, lba, 24)
    data = await session.good("GET LBA STATUS", lun, cdb, read_length=24)
    first, blocks, status = struct.unpack(">QIB3x", data[8:24])
    assert first == lba
    return status, blocks


@contextlib.asynccontextmanager
async def served(folder: Path, directory: Path) -> AsyncIterator[Session]:
    """A raw disk and a VHDX in the folder, and one in memory."""
    config = config_of(
        directory,
        server={"state_dir": directory / "state"},
        disks={
            "raw": {"path": folder / "raw.img", "size": 8 * MIB},
            "image": {"path": folder / "image.vhdx", "size": 8 * MIB},
            "memory": {"path": "ram:", "size": 8 * MIB},
        },
    )
    async with serving(config, directory) as live:
        session = await Session.connect(Portal(*live.address()), TARGET, NODE)
        try:
            for lun in range(3):
                await session.ready(lun)
            yield session
        finally:
            await session.close()


async def test_blocks_are_anchored_written_and_given_back(tmp_path: Path) -> None:
    async with served(tmp_path, tmp_path) as session:
        for lun in (0, 1):
            page = await session.vital_product_data(lun, 0xB2)
            if not page[5] & ANC_SUP:
                pytest.skip("the file system of the temporary directory cannot anchor")
            assert await status_of(session, lun, 0) == (DEALLOCATED, 8 * MIB // BLOCK)
            cdb, data = unmap(2048, 2048, anchor=True)
            await session.good("UNMAP", lun, cdb, data_out=data)
            assert await status_of(session, lun, 2048) == (ANCHORED, 2048)
            await session.good("WRITE SAME", lun, write_same(4096, 512, UNMAP_AND_ANCHOR | 1))
            assert await status_of(session, lun, 2048) == (ANCHORED, 2560)
            await session.write(lun, 2560, b"w" * 64 * 1024)
            assert await status_of(session, lun, 2048) == (ANCHORED, 512)
            assert await status_of(session, lun, 2560) == (MAPPED, 128)
            cdb, data = unmap(2048, 2560, anchor=False)
            await session.good("UNMAP", lun, cdb, data_out=data)
            assert (await status_of(session, lun, 2048))[0] == DEALLOCATED
            assert await session.read(lun, 2048, 128) == bytes(128 * BLOCK)


async def test_memory_refuses_to_anchor(tmp_path: Path) -> None:
    async with served(tmp_path, tmp_path) as session:
        assert not (await session.vital_product_data(2, 0xB2))[5] & ANC_SUP
        cdb, data = unmap(0, 8, anchor=True)
        for command, data_out in ((cdb, data), (write_same(0, 8, UNMAP_AND_ANCHOR | 1), b"")):
            refused = await session.execute(2, command, data_out=data_out)
            assert refused.status == CHECK_CONDITION
            assert refused.sense is not None
            assert (refused.sense.asc, refused.sense.ascq) == (0x24, 0x00)


async def test_a_full_host_takes_what_is_anchored(tmp_path: Path) -> None:
    with small_file_system(tmp_path) as folder:
        async with served(folder, tmp_path) as session:
            for lun in (0, 1):
                cdb, data = unmap(2048, 2048, anchor=True)
                await session.good("UNMAP", lun, cdb, data_out=data)
            await asyncio.to_thread(fill_up, folder)
            for lun in (0, 1):
                for lba in range(2048, 4096, 128):
                    await session.write(lun, lba, bytes([lba // 128 + lun]) * 128 * BLOCK)
                await session.flush(lun)
                for lba in range(2048, 4096, 128):
                    expected = bytes([lba // 128 + lun]) * 128 * BLOCK
                    assert await session.read(lun, lba, 128) == expected
