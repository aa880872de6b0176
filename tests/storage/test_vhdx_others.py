"""VHDX files by other programs read and written here, and ours read and written by them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pyiscsi_target.storage.base import BackingStore
from pyiscsi_target.storage.chain import ParentPaths
from pyiscsi_target.storage.file_io import FileIo
from pyiscsi_target.storage.open import open_store
from pyiscsi_target.storage.vhdx_create import Kind, NewDisk, ParentLink, create_vhdx
from tests.support import libvhdi
from tests.support.images import MIB
from tests.support.process import run_tool
from tests.support.recording_file import RecordingFile
from tests.support.vhdx_disks import Model, apply_step, differing, open_disk, read, write

SIZE = 40 * MIB + 512


def qemu_io(image: Path, *commands: str, check: bool = True) -> str:
    arguments = [part for command in commands for part in ("-c", command)]
    return run_tool(["qemu-io", "-f", "vhdx", *arguments, image], check=check).stdout


def same(image: Path, raw: Path) -> None:
    run_tool(["qemu-img", "check", "-q", "-f", "vhdx", image])
    run_tool(["qemu-img", "compare", "-q", "-f", "vhdx", "-F", "raw", image, raw])


def create(path: Path, disk: NewDisk) -> None:
    file = FileIo(os.open(path, os.O_RDWR | os.O_CREAT), str(path))
    create_vhdx(file, disk)
    file.close_blocking()


@asynccontextmanager
async def opened(path: Path, *, read_only: bool = False) -> AsyncIterator[BackingStore]:
    store = open_store(
        path.name, size_bytes=None, read_only=read_only, base=path.parent, block_size=512
    )
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.parametrize("block_size", [MIB, 8 * MIB, 256 * MIB])
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
async def test_disks_by_qemu(tmp_path: Path, subformat: str, block_size: int) -> None:
    if subformat == "fixed" and block_size == 256 * MIB:
        block_size = 16 * MIB  # it takes all its space
    image, raw = tmp_path / "disk.vhdx", tmp_path / "disk.img"
    options = f"subformat={subformat},block_size={block_size}"
    run_tool(["qemu-img", "create", "-q", "-f", "vhdx", "-o", options, image, str(SIZE)])
    qemu_io(image, "write -P 1 0 4k", "write -P 2 1000k 3M", f"write -P 3 {SIZE - 512} 512")
    model = Model(bytearray(SIZE))
    model.put(0, b"\1" * 4096)
    model.put(1000 * 1024, b"\2" * 3 * MIB)
    model.put(SIZE - 512, b"\3" * 512)
    async with opened(image, read_only=True) as disk:
        assert differing(await read(disk, 0, SIZE), model.content) == []
    async with opened(image) as disk:
        await apply_step(disk, model, "write", 20 * MIB - 512, b"\4" * 1024)
        await apply_step(disk, model, "deallocate", MIB, b"\0" * MIB)
    raw.write_bytes(model.content)
    same(image, raw)


async def test_a_log_by_qemu_is_replayed(tmp_path: Path) -> None:
    """QEMU is killed with its log in use."""
    image, raw = tmp_path / "disk.vhdx", tmp_path / "disk.img"
    options = f"block_size={MIB}"
    run_tool(["qemu-img", "create", "-q", "-f", "vhdx", "-o", options, image, str(SIZE)])
    writes = [f"write -P {at + 1} {at * 3}M 64k" for at in range(9)]
    qemu_io(image, *writes, "flush", "abort", check=False)
    content = bytearray(SIZE)
    for at in range(9):
        content[at * 3 * MIB : at * 3 * MIB + 65536] = bytes((at + 1,)) * 65536
    raw.write_bytes(content)
    async with opened(image, read_only=True) as disk:
        assert differing(await read(disk, 0, SIZE), content) == []
    async with opened(image) as disk:
        assert differing(await read(disk, 0, SIZE), content) == []
    same(image, raw)


@pytest.mark.parametrize("kind", [Kind.FIXED, Kind.DYNAMIC])
@pytest.mark.parametrize("block_bytes", [MIB, 16 * MIB])
async def test_our_disks(tmp_path: Path, kind: Kind, block_bytes: int) -> None:
    image, raw = tmp_path / "disk.vhdx", tmp_path / "disk.img"
    create(image, NewDisk(SIZE, kind, block_bytes))
    model = Model(bytearray(SIZE))
    async with opened(image) as disk:
        await apply_step(disk, model, "write", 100 * 1024, bytes(range(256)) * 16 * 1024)
        await apply_step(disk, model, "write", SIZE - 1024, b"\7" * 1024)
        await apply_step(disk, model, "deallocate", 2 * MIB, b"\0" * 1024 * 1024)
    raw.write_bytes(model.content)
    same(image, raw)
    assert libvhdi_content(image) == model.content
    qemu_io(image, "write -P 9 2500k 5M")
    model.put(2500 * 1024, b"\x09" * 5 * MIB)
    async with opened(image) as disk:
        assert differing(await read(disk, 0, SIZE), model.content) == []


async def test_our_disk_when_it_has_grown(tmp_path: Path) -> None:
    """So far that its BAT had to move."""
    image = tmp_path / "disk.vhdx"
    create(image, NewDisk(SIZE, Kind.DYNAMIC, MIB))
    size = 200 << 30
    async with opened(image) as disk:
        await write(disk, 0, b"\1" * MIB)
        await disk.resize(size)
        await write(disk, size - MIB, b"\2" * MIB)
    run_tool(["qemu-img", "check", "-q", "-f", "vhdx", image])
    patterns = ["read -P 1 0 1M", "read -P 0 1M 512", f"read -P 2 {size - MIB} 1M"]
    assert "verification failed" not in qemu_io(image, *patterns)


async def test_our_log_is_replayed_by_qemu(tmp_path: Path) -> None:
    """At many points of two rounds through the log, with entries applied and not."""
    memory = RecordingFile()
    create_vhdx(memory, NewDisk(6 * MIB, block_bytes=MIB, log_bytes=MIB))
    disk, model = open_disk(memory), Model(bytearray(6 * MIB))
    image, raw = tmp_path / "disk.vhdx", tmp_path / "disk.img"
    for number in range(80):
        at = number % 6 * MIB
        await apply_step(disk, model, "write", at + 512, bytes((number + 1,)) * 512)
        if number % 23 == 11:
            await apply_step(disk, model, "flush", 0, b"")
        if number in (0, 1, 12, 40, 79):
            image.write_bytes(memory.killed())
            raw.write_bytes(model.content)
            run_tool(["qemu-img", "check", "-q", "-r", "all", "-f", "vhdx", image])
            same(image, raw)
        await apply_step(disk, model, "deallocate", at, bytes(MIB))


async def test_our_children_are_read_by_libvhdi(tmp_path: Path) -> None:
    parent, child = tmp_path / "parent.vhdx", tmp_path / "child.vhdx"
    model = Model(bytearray(8 * MIB))
    create(parent, NewDisk(8 * MIB, block_bytes=MIB))
    async with opened(parent) as disk:
        await apply_step(disk, model, "write", 0, bytes(range(256)) * 4096 * 3)
        guid = disk.data_write_guid  # type: ignore[attr-defined]
    link = ParentLink(guid, ParentPaths((".\\parent.vhdx",), (str(parent),)))
    create(child, NewDisk(8 * MIB, Kind.DIFFERENCING, 2 * MIB, parent=link))
    async with opened(child) as disk:
        await apply_step(disk, model, "write", MIB + 512, b"\5" * 1024)
        await apply_step(disk, model, "write", 5 * MIB, b"\6" * 4096)
        await apply_step(disk, model, "deallocate", 2 * MIB, bytes(MIB))
    async with opened(child) as disk:
        assert differing(await read(disk, 0, 8 * MIB), model.content) == []
    # Of a whole block that is ZERO it shows what the parent has, against section 2.5.1.1.
    found = libvhdi.read_disk(child, parent)
    assert differing(found.content, model.content) == []
    parent.unlink()
    with pytest.raises(Exception, match=r"parent.vhdx' is missing"):
        async with opened(child):
            pass


def libvhdi_content(image: Path) -> bytes:
    return libvhdi.read_disk(image).content


WRITER = """
import asyncio, sys
from pathlib import Path
from pyiscsi_target.storage.open import open_store

async def main():
    disk = open_store(sys.argv[1], size_bytes=None, read_only=False, base=Path("/"), block_size=512)
    for number in range(1, 100000):
        at = number * 37 % 79 << 19
        data = number.to_bytes(4, "little") * 1024
        if number % 10 == 0:
            await disk.deallocate(at, 1 << 20)
        elif not disk.write_now(at, [data]):
            await disk.write(at, [data])
        if number % 50 == 0:
            await disk.flush()
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("stop", [3, 60, 333])
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, stop: int) -> None:
    image = tmp_path / "disk.vhdx"
    create(image, NewDisk(SIZE, block_bytes=MIB))
    command = [sys.executable, "-c", WRITER, str(image)]
    acknowledged = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            while acknowledged < stop:
                acknowledged = int(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGKILL)
        acknowledged += sum(1 for _ in process.stdout)  # what was on its way
    asyncio.run(_check_writer(image, acknowledged))


async def _check_writer(image: Path, acknowledged: int) -> None:
    model, after = bytearray(SIZE), bytearray(SIZE)
    for number in range(1, acknowledged + 2):  # the last may have begun
        at = number * 37 % 79 << 19
        data = bytes(MIB) if number % 10 == 0 else number.to_bytes(4, "little") * 1024
        length = min(len(data), SIZE - at)
        after[at : at + length] = data[:length]
        if number <= acknowledged:
            model[at : at + length] = data[:length]
    async with opened(image) as disk:
        found = await read(disk, 0, SIZE)
    for sector in differing(found, model):
        at = sector * 512
        assert found[at : at + 512] == after[at : at + 512]
