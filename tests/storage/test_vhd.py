"""VHDs of every kind against a plain bytearray, against QEMU and against libvhdi."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyiscsi_target.storage.base import BackingStore, Provisioning, StorageError, StorageFault
from pyiscsi_target.storage.block_table import UNKNOWN
from pyiscsi_target.storage.chain import Chain, ParentPaths, paths_between
from pyiscsi_target.storage.file_io import FileIo
from pyiscsi_target.storage.vhd import open_vhd
from pyiscsi_target.storage.vhd_blocks import FILL_BYTES
from pyiscsi_target.storage.vhd_create import NewVhd, ParentOfNew, new_dynamic, new_fixed
from pyiscsi_target.storage.vhd_format import Footer, build_footer, parse_footer
from tests.support.libvhdi import read_disk
from tests.support.process import run_tool
from tests.support.recording_file import RecordingFile
from tests.support.vhd_files import (
    contents,
    open_blocks,
    open_parent,
    put,
    read_all,
    small_child,
    small_dynamic,
    write_bytes,
)

MIB = 1 << 20
SIZE = 9 * MIB + 7 * 512


def open_path(path: Path, *, read_only: bool = False, chain: Chain | None = None) -> BackingStore:
    """The disk in the file, with its parents."""
    chain = chain or Chain(path)
    flags = os.O_RDONLY if read_only else os.O_RDWR
    file = FileIo(os.open(path, flags), str(path), read_only=read_only)

    def find(paths: ParentPaths) -> BackingStore:
        parent = chain.to_parent(paths)
        return open_path(parent.path, read_only=True, chain=parent)

    return open_vhd(file, find_parent=find)


def footer_of(path: Path) -> Footer:
    with path.open("rb") as file:
        file.seek(-512, os.SEEK_END)
        return parse_footer(file.read())


def make_child(path: Path, parent: Path, size_bytes: int | None = None) -> Path:
    footer = footer_of(parent)
    record = ParentOfNew(
        parent.name, footer.unique_id, footer.time_stamp, paths_between(path, parent)
    )
    return put(path, new_dynamic(size_bytes or footer.size_bytes, parent=record))


async def scribble(path: Path, seed: int, writes: int = 30) -> bytes:
    """Write here and there; say what the disk holds then."""
    source = random.Random(seed)
    disk = open_path(path)
    for _ in range(writes):
        offset = source.randrange(disk.size_bytes // 512) * 512
        length = min(source.choice((512, 4096, 70000 // 512 * 512)), disk.size_bytes - offset)
        await write_bytes(disk, offset, source.randbytes(length))
    await disk.deallocate(2 * MIB, 4 * MIB)
    content = await read_all(disk)
    await disk.close()
    return content


# QEMU

QEMU_KINDS = [
    (kind, force, size)
    for kind in ("dynamic", "fixed")
    for force in ("on", "off")
    for size in (SIZE, 40 * MIB)
]


@pytest.mark.parametrize(("kind", "force", "size"), QEMU_KINDS)
async def test_disks_by_qemu_are_read_and_written(
    tmp_path: Path, kind: str, force: str, size: int
) -> None:
    image, raw = tmp_path / "disk.vhd", tmp_path / "disk.raw"
    options = f"subformat={kind},force_size={force}"
    run_tool(["qemu-img", "create", "-q", "-f", "vpc", "-o", options, image, str(size)])
    patterns = ["write -P 1 0 64k", "write -P 2 3M 3M", "write -P 3 9000k 512"]
    run_tool(["qemu-io", "-f", "vpc", *(a for p in patterns for a in ("-c", p)), image])
    run_tool(["qemu-img", "convert", "-f", "vpc", "-O", "raw", image, raw])
    disk = open_path(image)
    expected = bytearray(raw.read_bytes())
    assert disk.size_bytes == len(expected)
    assert await read_all(disk) == expected
    for offset, data in ((512, b"a" * 512), (1 * MIB, b"b" * 3 * MIB), (8 * MIB, b"c" * 5120)):
        await write_bytes(disk, offset, data)
        expected[offset : offset + len(data)] = data
    await disk.close()
    raw.write_bytes(expected)
    run_tool(["qemu-img", "compare", "-f", "vpc", "-F", "raw", image, raw])


@pytest.mark.parametrize("new", [new_fixed, new_dynamic], ids=["fixed", "dynamic"])
async def test_our_disks_are_read_and_written_by_qemu(
    tmp_path: Path, new: Callable[[int], NewVhd]
) -> None:
    image, raw = put(tmp_path / "disk.vhd", new(SIZE)), tmp_path / "disk.raw"
    expected = bytearray(await scribble(image, 1))
    raw.write_bytes(expected)
    run_tool(["qemu-img", "compare", "-f", "vpc", "-F", "raw", image, raw])
    run_tool(["qemu-io", "-f", "vpc", "-c", "write -P 9 2500k 5M", image])
    expected[2500 << 10 : (2500 << 10) + 5 * MIB] = b"\x09" * 5 * MIB
    disk = open_path(image, read_only=True)
    assert await read_all(disk) == expected
    await disk.close()


async def test_blocks_of_another_size_are_read_by_qemu(tmp_path: Path) -> None:
    image, raw = put(tmp_path / "d.vhd", new_dynamic(40 * MIB, 16 * MIB)), tmp_path / "disk.raw"
    raw.write_bytes(await scribble(image, 2))
    run_tool(["qemu-img", "compare", "-f", "vpc", "-F", "raw", image, raw])


# libvhdi


async def test_libvhdi_reads_our_chains_alike(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    grand = put(tmp_path / "base" / "grand.vhd", new_fixed(SIZE))
    await scribble(grand, 1)
    parent = make_child(tmp_path / "parent.vhd", grand)
    in_parent = await scribble(parent, 2, 5)
    child = make_child(tmp_path / "child.vhd", parent)
    in_child = await scribble(child, 3, 5)
    assert read_disk(parent, grand).content == in_parent
    seen = read_disk(child, parent, grand)
    assert seen.content == in_child
    assert seen.parent_name == "parent.vhd"
    assert seen.parent_id == str(footer_of(parent).unique_id)
    disk = open_path(child)
    assert await read_all(disk) == in_child
    await disk.close()


async def test_a_child_writes_only_what_it_must(tmp_path: Path) -> None:
    parent = put(tmp_path / "p.vhd", new_fixed(64 * MIB))
    with parent.open("r+b") as file:
        file.write(b"\x55" * (8 * MIB))
    child = make_child(tmp_path / "c.vhd", parent)
    disk = open_path(child)
    await write_bytes(disk, 3 * MIB, b"x" * 512)
    await disk.close()
    assert child.stat().st_blocks * 512 <= FILL_BYTES + 32768
    assert child.stat().st_size < 3 * MIB


# Parents


async def test_a_parent_that_has_changed_is_refused(tmp_path: Path) -> None:
    parent = put(tmp_path / "p.vhd", new_dynamic(SIZE))
    os.utime(parent, (1e9, 1e9))
    child = make_child(tmp_path / "c.vhd", parent)
    await scribble(parent, 1)
    os.utime(parent, (1e9, 1e9))
    with pytest.raises(StorageError, match=r"p\.vhd was changed after this child .*time stamp"):
        open_path(child)


async def test_a_parent_that_was_only_opened_has_not_changed(tmp_path: Path) -> None:
    parent = put(tmp_path / "p.vhd", new_dynamic(SIZE))
    child = make_child(tmp_path / "c.vhd", parent)
    await open_path(parent).close()
    await open_path(child).close()


async def test_the_time_of_the_file_counts_as_the_time_stamp(tmp_path: Path) -> None:
    """Some tools record it in place of the footer's."""
    parent = put(tmp_path / "p.vhd", new_fixed(SIZE))
    footer = footer_of(parent)
    stamp = footer.time_stamp + 1000
    record = ParentOfNew("p.vhd", footer.unique_id, stamp, ParentPaths(("p.vhd",)))
    child = put(tmp_path / "c.vhd", new_dynamic(SIZE, parent=record))
    with pytest.raises(StorageError, match="time stamp"):
        open_path(child)
    os.utime(parent, (stamp + 946684800, stamp + 946684800))
    await open_path(child).close()
    # One that changes takes on a later stamp, and may do so within the grain of a file's time.
    changed = replace(footer, time_stamp=stamp + 1)
    parent.write_bytes(parent.read_bytes()[:-512] + build_footer(changed))
    os.utime(parent, (stamp + 946684801, stamp + 946684801))
    with pytest.raises(StorageError, match="was changed after this child"):
        open_path(child)


def test_another_disk_of_the_parents_name_is_refused(tmp_path: Path) -> None:
    parent = put(tmp_path / "p.vhd", new_fixed(SIZE))
    child = make_child(tmp_path / "c.vhd", parent)
    put(parent, new_fixed(SIZE))
    with pytest.raises(StorageError, match="another disk: its unique id") as caught:
        open_path(child)
    assert caught.value.fault is StorageFault.INVALID


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    parent = put(tmp_path / "p.vhd", new_fixed(SIZE))
    child = make_child(tmp_path / "c.vhd", parent)
    parent.unlink()
    with pytest.raises(StorageError, match=r"c\.vhd: its parent 'p\.vhd' is missing") as caught:
        open_path(child)
    assert caught.value.fault is StorageFault.MISSING


async def test_a_child_may_be_larger_than_its_parent(tmp_path: Path) -> None:
    parent = put(tmp_path / "p.vhd", new_fixed(512 * 3))
    with parent.open("r+b") as file:
        file.write(b"\x55" * 1536)
    child = make_child(tmp_path / "c.vhd", parent, SIZE)
    disk = open_path(child)
    assert await read_all(disk) == b"\x55" * 1536 + bytes(SIZE - 1536)
    await write_bytes(disk, 1024, b"y" * 1024)
    assert (await read_all(disk))[:2560] == b"\x55" * 1024 + b"y" * 1024 + bytes(512)
    await disk.close()


# Against a bytearray

BLOCK = 16 * 512
SMALL = 5 * BLOCK + 3 * 512


class Model:
    """A disk beside what it must hold."""

    def __init__(self, make: Callable[[], tuple[bytes, Callable[[RecordingFile], BackingStore]]]):
        raw, self.open = make()
        self.file = RecordingFile(raw)
        self.disk = self.open(self.file)
        self.expected = bytearray()

    async def begin(self) -> None:
        self.expected = bytearray(await read_all(self.disk))

    async def write(self, first: int, count: int, seed: int) -> None:
        offset = first * 512
        data = random.Random(seed).randbytes(min(count * 512, SMALL - offset))
        await write_bytes(self.disk, offset, data, durable=seed % 5 == 0)
        self.expected[offset : offset + len(data)] = data

    async def zero(self, first: int, count: int, seed: int) -> None:
        offset, length = first * 512, min(count * 512, SMALL - first * 512)
        await (self.disk.deallocate if seed % 2 else self.disk.write_zeroes)(offset, length)
        self.expected[offset : offset + length] = bytes(length)

    async def reopen(self, first: int, count: int, seed: int) -> None:
        if seed % 2:
            await self.disk.close()
        self.file = RecordingFile(self.file.killed())
        self.file.slow = seed % 3 == 0
        self.disk = self.open(self.file)

    async def check(self, first: int, count: int, seed: int) -> None:
        offset, length = first * 512, min(count * 512, SMALL - first * 512)
        found = await read_all(self.disk, offset, length)
        assert found == self.expected[offset : offset + length]
        extents = await self.disk.extents(offset, length, 1000)
        assert sum(extent.length_bytes for extent in extents) == length
        for extent in extents:
            if extent.state is Provisioning.DEALLOCATED:
                end = extent.offset_bytes + extent.length_bytes
                assert not any(self.expected[extent.offset_bytes : end])


def a_fixed_disk() -> tuple[bytes, Callable[[RecordingFile], BackingStore]]:
    return contents(new_fixed(SMALL)), lambda file: open_vhd(file)


def a_dynamic_disk() -> tuple[bytes, Callable[[RecordingFile], BackingStore]]:
    return small_dynamic(SMALL, BLOCK), open_blocks


def a_child() -> tuple[bytes, Callable[[RecordingFile], BackingStore]]:
    parent = bytearray(contents(new_fixed(SMALL)))
    parent[BLOCK : 3 * BLOCK] = random.Random(3).randbytes(2 * BLOCK)
    find = open_parent(bytes(parent))
    raw = small_child(SMALL, BLOCK, parse_footer(bytes(parent[-512:])))
    return raw, lambda file: open_blocks(file, find)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("write", "write", "write", "zero", "reopen", "check")),
        st.integers(0, SMALL // 512 - 1),
        st.integers(1, 50),
        st.integers(0, 1 << 20),
    ),
    max_size=25,
)


@pytest.mark.parametrize("make", [a_fixed_disk, a_dynamic_disk, a_child])
@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_a_disk_holds_what_a_bytearray_does(
    make: Callable[[], tuple[bytes, Callable[[RecordingFile], BackingStore]]],
    steps: list[tuple[str, int, int, int]],
) -> None:
    async def run() -> None:
        model = Model(make)
        await model.begin()
        for name, first, count, seed in steps:
            await getattr(model, name)(first, count, seed)
        await model.check(0, SMALL // 512, 0)
        await model.disk.close()

    asyncio.run(run())


# Space


async def test_a_freed_block_is_used_again() -> None:
    file = RecordingFile(small_dynamic(SMALL, BLOCK))
    disk = open_blocks(file)
    for _ in range(20):
        await write_bytes(disk, BLOCK, b"x" * BLOCK)
        await disk.deallocate(BLOCK, BLOCK)
    await disk.close()
    assert len(file.killed()) < 3 * BLOCK


async def test_gaps_are_used_again_after_opening_and_hold_nothing_old() -> None:
    file = RecordingFile(small_dynamic(SMALL, BLOCK))
    disk = open_blocks(file)
    for block in range(4):
        await write_bytes(disk, block * BLOCK, b"old" + b"x" * (BLOCK - 3))
    await disk.flush()
    end = len(file.killed())
    table_offset = 1536
    raw = bytearray(file.killed())
    raw[table_offset + 4 : table_offset + 12] = b"\xff" * 8  # blocks 1 and 2 are freed, not zeroed
    file = RecordingFile(bytes(raw))
    disk = open_blocks(file)
    await write_bytes(disk, 2 * BLOCK, b"n" * 512)
    await write_bytes(disk, 1 * BLOCK, b"n" * 512)
    assert await read_all(disk, BLOCK, 2 * BLOCK) == (b"n" * 512 + bytes(BLOCK - 512)) * 2
    await disk.close()
    assert len(file.killed()) <= end


async def test_a_full_file_system_fails_the_write_alone() -> None:
    file = RecordingFile(small_dynamic(SMALL, BLOCK))
    file.space_bytes = BLOCK
    disk = open_blocks(file)
    with pytest.raises(StorageError) as caught:
        await disk.write(0, (b"x" * 512,))
    assert caught.value.fault is StorageFault.OUT_OF_SPACE
    assert await read_all(disk) == bytes(SMALL)
    file.space_bytes = None
    await write_bytes(disk, 0, b"x" * 512)
    await disk.close()
    disk = open_blocks(RecordingFile(file.killed()))
    assert await read_all(disk, 0, 1024) == b"x" * 512 + bytes(512)


async def test_the_last_room_is_used() -> None:
    """Room for many blocks is made at once, but one will do."""
    file = RecordingFile(small_dynamic(SMALL, BLOCK))
    file.space_bytes = 2 * BLOCK + 4096
    disk = open_blocks(file)
    await write_bytes(disk, 0, b"x" * 512)
    with pytest.raises(StorageError) as caught:
        await disk.write(BLOCK, (b"x" * 512,))
    assert caught.value.fault is StorageFault.OUT_OF_SPACE
    assert await read_all(disk, 0, 512) == b"x" * 512
    await disk.close()
    disk = open_blocks(RecordingFile(file.killed()))
    assert await read_all(disk, 0, 512) == b"x" * 512


async def test_a_full_file_system_lets_the_file_be_closed() -> None:
    """Cutting off what it does not need takes room for the footer, which may not be there."""
    file = RecordingFile(small_dynamic(SMALL, BLOCK))
    disk = open_blocks(file)
    await write_bytes(disk, 0, b"x" * 512)
    await disk.flush()
    size, file.space_bytes = file.size_bytes, 0
    await disk.close()
    assert file.size_bytes == size
    disk = open_blocks(RecordingFile(file.killed()))
    assert await read_all(disk, 0, 1024) == b"x" * 512 + bytes(512)


async def test_a_failed_flush_takes_no_block_into_use() -> None:
    file = RecordingFile(small_dynamic(SMALL, BLOCK))
    disk = open_blocks(file)
    await write_bytes(disk, 0, b"x" * 512)
    await disk.deallocate(0, BLOCK)
    file.fail = StorageError(StorageFault.MEDIUM, "on purpose")
    before = await read_all(disk)
    disk._space._ready.clear()  # so that room has to be made
    with pytest.raises(StorageError, match="on purpose"):
        await disk.write(BLOCK, (b"y" * 512,))
    assert await read_all(disk) == before
    await write_bytes(disk, BLOCK, b"y" * 512)
    assert await read_all(disk, BLOCK, 512) == b"y" * 512


async def test_a_file_ends_where_its_blocks_do_once_it_is_closed(tmp_path: Path) -> None:
    image = put(tmp_path / "d.vhd", new_dynamic(1 << 30))
    disk = open_path(image)
    await write_bytes(disk, 0, b"x" * 512)
    assert image.stat().st_size > 4 * MIB
    await disk.close()
    assert image.stat().st_size < 2 * MIB + 12288
    assert footer_of(image).disk_type == 3


async def test_a_disk_that_is_only_read_stays_as_it_is(tmp_path: Path) -> None:
    image = put(tmp_path / "d.vhd", new_dynamic(SIZE))
    before = image.read_bytes()
    disk = open_path(image)
    await read_all(disk)
    await disk.write(MIB, (bytes(512),))  # zeroes where there are zeroes
    await disk.close()
    assert footer_of(image).unique_id == parse_footer(before[-512:]).unique_id
    disk = open_path(image, read_only=True)
    with pytest.raises(StorageError) as caught:
        await disk.write(0, (b"x" * 512,))
    assert caught.value.fault is StorageFault.READ_ONLY
    await disk.close()


async def test_many_writes_into_new_blocks_share_their_flushes() -> None:
    file = RecordingFile(small_dynamic(SMALL, BLOCK))
    disk = open_blocks(file)
    before = file.flushes
    await asyncio.gather(*(write_bytes(disk, at, b"x" * 512) for at in range(0, SMALL, BLOCK)))
    assert file.flushes - before <= 3  # two for the time stamp, one for the room


async def test_a_bitmap_is_loaded_once() -> None:
    file = RecordingFile(small_dynamic(SMALL, BLOCK))
    disk = open_blocks(file)
    await write_bytes(disk, 0, b"x" * 512)
    await disk.close()
    disk = open_blocks(RecordingFile(file.killed()))
    assert disk.table[0] == UNKNOWN
    into = memoryview(bytearray(512))
    assert not disk.read_now(0, into)
    await disk.read(0, into)
    assert disk.table[0] > 0
    assert disk.read_now(0, into)


# Footers


def damaged_tail(raw: bytes) -> bytes:
    return raw[:-512] + bytes(512)


@pytest.mark.parametrize("kept", ["copy", "footer"])
async def test_one_footer_is_enough_and_the_other_is_repaired(kept: str) -> None:
    raw = small_dynamic(SMALL, BLOCK)
    torn = damaged_tail(raw) if kept == "copy" else bytes(512) + raw[512:]
    file = RecordingFile(torn, read_only=True)
    assert open_blocks(file).size_bytes == SMALL
    assert file.killed() == torn
    file = RecordingFile(torn)
    assert open_blocks(file).size_bytes == SMALL
    assert file.killed() == raw


def test_a_footer_that_was_cut_off_is_put_behind_the_blocks() -> None:
    raw = small_dynamic(SMALL, BLOCK)
    file = RecordingFile(raw[:-100])
    open_blocks(file)
    assert file.killed() == raw[:-512] + raw[-512:-100].ljust(512, b"\0") + raw[-512:]


async def test_an_old_footer_of_511_bytes_is_enough() -> None:
    raw = small_dynamic(SMALL, BLOCK)
    file = RecordingFile(raw[:-1])
    disk = open_blocks(file)
    await write_bytes(disk, 0, b"x" * 512)
    await disk.close()
    disk = open_blocks(RecordingFile(file.killed()))
    assert await read_all(disk, 0, 512) == b"x" * 512
    fixed = contents(new_fixed(SMALL))[:-1]
    assert open_vhd(RecordingFile(fixed)).size_bytes == SMALL


def test_a_fixed_disk_without_its_footer_is_refused() -> None:
    raw = damaged_tail(contents(new_fixed(SMALL)))
    with pytest.raises(StorageError, match=f"footer at byte {SMALL}: the cookie"):
        open_vhd(RecordingFile(raw))


def test_what_a_guest_writes_into_its_first_sector_is_no_footer() -> None:
    raw = contents(new_fixed(SMALL))
    fake = build_footer(replace(parse_footer(raw[-512:]), current_size=512))
    with pytest.raises(StorageError, match="cookie"):
        open_vhd(RecordingFile(fake + damaged_tail(raw)[512:]))


# kill -9

WRITER = """
import asyncio, os, sys
from pathlib import Path
from tests.storage.test_vhd import open_path, write_bytes

async def main(path):
    disk = open_path(Path(path))
    number = 0
    while True:
        number += 1
        sector = number * 7919 % (disk.size_bytes // 512)
        await write_bytes(disk, sector * 512, number.to_bytes(8) * 64)
        os.write(1, number.to_bytes(8))  # acknowledged

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("kind", ["dynamic", "child"])
async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, kind: str) -> None:
    image = put(tmp_path / "d.vhd", new_dynamic(64 * MIB))
    if kind == "child":
        await scribble(image, 5)
        image = make_child(tmp_path / "c.vhd", image)
    before = open_path(image, read_only=True)
    expected = bytearray(await read_all(before))
    await before.close()
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(image), stdout=asyncio.subprocess.PIPE
    )
    assert writer.stdout is not None
    acknowledged = await writer.stdout.readexactly(8 * 400)
    writer.send_signal(signal.SIGKILL)
    acknowledged += await writer.stdout.read()
    await writer.wait()
    last = len(acknowledged) // 8
    for number in range(1, last + 1):
        sector = number * 7919 % (len(expected) // 512)
        expected[sector * 512 : (sector + 1) * 512] = number.to_bytes(8) * 64
    disk = open_path(image)
    found = bytearray(await read_all(disk))
    await disk.close()
    unsure = (last + 1) * 7919 % (len(expected) // 512) * 512  # written, not acknowledged
    found[unsure : unsure + 512] = expected[unsure : unsure + 512]
    assert found == expected
