"""VHDs that grow and shrink, also when the power goes meanwhile."""

import json
import random
from pathlib import Path

import pytest

from pyiscsi_target.storage.base import BackingStore, StorageError, StorageFault
from pyiscsi_target.storage.vhd import FixedVhd, open_vhd
from pyiscsi_target.storage.vhd_create import new_fixed
from pyiscsi_target.storage.vhd_disk import VhdDisk
from pyiscsi_target.storage.vhd_format import parse_footer
from tests.support.process import run_tool
from tests.support.recording_file import RecordingFile
from tests.support.vhd_files import (
    contents,
    open_parent,
    read_all,
    small_child,
    small_dynamic,
    write_bytes,
)

BLOCK = 16 * 512
SIZE = 5 * BLOCK + 3 * 512
DATA = random.Random(1).randbytes(SIZE)


class FailingFlushes(RecordingFile):
    """Flush number `failing` from now on fails, and is forgotten then."""

    failing = -1

    def flush_blocking(self) -> None:
        self.failing -= 1
        if self.failing == -1:
            raise StorageError(StorageFault.MEDIUM, "injected")
        super().flush_blocking()


def open_raw(raw: bytes) -> FixedVhd | VhdDisk:
    return open_vhd(RecordingFile(raw))


async def filled(raw: bytes, data: bytes = DATA) -> bytes:
    disk = open_raw(raw)
    await write_bytes(disk, 0, data)
    await disk.close()
    return file_of(disk).killed()


def file_of(disk: BackingStore) -> RecordingFile:
    assert isinstance(disk, FixedVhd | VhdDisk)
    assert isinstance(disk.file, RecordingFile)
    return disk.file


@pytest.fixture(params=["fixed", "dynamic"])
def empty(request: pytest.FixtureRequest) -> bytes:
    is_fixed = request.param == "fixed"
    return contents(new_fixed(SIZE)) if is_fixed else small_dynamic(SIZE, BLOCK)


async def test_a_disk_without_blocks_grows_beyond_its_table() -> None:
    """The table does not end at a sector's end, but what is put behind it begins at one's start."""
    disk = open_raw(await filled(small_dynamic(SIZE, BLOCK), b""))
    await disk.close()
    assert not file_of(disk).size_bytes % 512
    disk = open_raw(file_of(disk).killed())
    await disk.resize(SIZE + 3000 * BLOCK)
    await write_bytes(disk, SIZE, b"z" * 512)
    await disk.close()
    disk = open_raw(file_of(disk).killed())
    assert await read_all(disk) == bytes(SIZE) + b"z" * 512 + bytes(3000 * BLOCK - 512)


@pytest.mark.parametrize("more", [512, 3 * 512, BLOCK, 40 * BLOCK, 3000 * BLOCK])
async def test_a_disk_grows_with_zeroes(empty: bytes, more: int) -> None:
    disk = open_raw(await filled(empty))
    await disk.resize(SIZE + more)
    assert disk.size_bytes == SIZE + more
    end = disk.size_bytes - 512
    assert await read_all(disk) == DATA + bytes(more)
    await write_bytes(disk, end, b"z" * 512)
    assert await read_all(disk, end, 512) == b"z" * 512
    await disk.close()
    again = open_raw(file_of(disk).killed())
    assert again.footer.size_bytes == again.size_bytes == SIZE + more
    assert await read_all(again) == DATA + bytes(more - 512) + b"z" * 512


async def test_it_grows_again_and_again(empty: bytes) -> None:
    disk = open_raw(await filled(empty))
    for step in range(1, 8):
        await disk.resize(SIZE + step * 700 * BLOCK)
        await write_bytes(disk, SIZE + (step * 700 - 1) * BLOCK, bytes([step]) * 512)
    content = await read_all(disk)
    await disk.close()
    again = open_raw(file_of(disk).killed())
    assert await read_all(again) == content
    for step in range(1, 8):
        at = SIZE + (step * 700 - 1) * BLOCK
        assert content[at : at + 512] == bytes([step]) * 512


@pytest.mark.parametrize("size", [512, BLOCK, 3 * BLOCK + 512])
async def test_a_disk_shrinks_where_its_end_is_empty(empty: bytes, size: int) -> None:
    disk = open_raw(await filled(empty, DATA[:size] + bytes(BLOCK)))
    await disk.resize(size)
    await disk.close()
    raw = file_of(disk).killed()
    again = open_raw(raw)
    assert await read_all(again) == DATA[:size]
    await again.resize(SIZE)
    assert await read_all(again) == DATA[:size].ljust(SIZE, b"\0")


async def test_what_shrinks_away_is_free_again() -> None:
    disk = open_raw(await filled(small_dynamic(SIZE, BLOCK)))
    await disk.deallocate(2 * BLOCK, SIZE - 2 * BLOCK)
    await disk.resize(2 * BLOCK)
    await disk.close()
    assert len(file_of(disk).killed()) < 3 * BLOCK + 8192


async def test_no_data_is_cut_off(empty: bytes) -> None:
    disk = open_raw(await filled(empty))
    with pytest.raises(StorageError, match="holds data at byte") as caught:
        await disk.resize(SIZE - 512)
    assert caught.value.fault is StorageFault.INVALID
    assert disk.size_bytes == SIZE
    assert await read_all(disk) == DATA


@pytest.mark.parametrize("size", [0, 513, 64 << 40])
async def test_sizes_that_cannot_be(empty: bytes, size: int) -> None:
    disk = open_raw(empty)
    with pytest.raises(StorageError, match="whole sectors"):
        await disk.resize(size)


async def test_a_read_only_disk_stays(empty: bytes) -> None:
    disk = open_vhd(RecordingFile(empty, read_only=True))
    with pytest.raises(StorageError) as caught:
        await disk.resize(SIZE + 512)
    assert caught.value.fault is StorageFault.READ_ONLY


@pytest.mark.parametrize("size", [BLOCK, 2 * BLOCK + 512, 3 * BLOCK - 512])
@pytest.mark.parametrize("larger", [3 * BLOCK + 512, SIZE + BLOCK])
async def test_a_child_does_not_uncover_what_its_parent_has(size: int, larger: int) -> None:
    """Not even when the power goes meanwhile, nor where it was larger before."""
    parent = await filled(contents(new_fixed(SIZE)))
    child = small_child(SIZE, BLOCK, parse_footer(parent[-512:]))
    disk = open_vhd(RecordingFile(child), find_parent=open_parent(parent))
    await write_bytes(disk, 512, b"c" * 512)
    await disk.deallocate(size, SIZE - size)
    await disk.resize(size)
    await disk.close()
    file = Watched(file_of(disk).killed())
    disk = open_vhd(file, find_parent=open_parent(parent))
    content = DATA[:512] + b"c" * 512 + DATA[1024:size]
    assert await read_all(disk) == content
    await disk.resize(larger)
    assert await read_all(disk) == content.ljust(larger, b"\0")
    for state in file.states | set(file.crash_states(6)):
        found = open_vhd(RecordingFile(state), find_parent=open_parent(parent))
        assert found.size_bytes in (size, larger)
        assert await read_all(found) == content.ljust(found.size_bytes, b"\0")


async def test_blocks_behind_the_end_never_come_to_light() -> None:
    """Another tool may have made the disk smaller and left its blocks."""
    raw = bytearray(await filled(small_dynamic(SIZE, BLOCK)))
    whole = open_raw(bytes(raw))
    await whole._space.resize(BLOCK + 512, 0)  # type: ignore[union-attr]
    disk = open_raw(file_of(whole).killed())
    assert await read_all(disk) == DATA[: BLOCK + 512]
    await disk.resize(SIZE)
    assert await read_all(disk) == DATA[: BLOCK + 512].ljust(SIZE, b"\0")


class Watched(RecordingFile):
    """Keeps what a crash may leave."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.states: set[bytes] = set()

    def flush_blocking(self) -> None:
        self.states.update(self.crash_states(6))
        super().flush_blocking()


@pytest.mark.parametrize("size", [SIZE + 512, SIZE + 300 * BLOCK, 2 * BLOCK])
async def test_the_power_goes_while_it_is_resized(empty: bytes, size: int) -> None:
    data = DATA[: 2 * BLOCK]
    file = Watched(await filled(empty, data))
    disk = open_vhd(file)
    await disk.resize(size)
    file.states.update(file.crash_states(6))
    sizes = set()
    for state in file.states:
        found = open_raw(state)
        sizes.add(found.size_bytes)
        assert await read_all(found, 0, 2 * BLOCK) == data
        await write_bytes(found, found.size_bytes - 512, b"y" * 512)
    assert sizes == {SIZE, size}


@pytest.mark.parametrize("size", [SIZE + 512, SIZE + 2 * BLOCK, SIZE + 4 * BLOCK])
async def test_a_fixed_disk_grows_after_a_growth_that_was_cut_short(size: int) -> None:
    """Nothing of a footer is seen in what is new, whatever size it has in the end."""
    file = Watched(await filled(contents(new_fixed(SIZE))))
    await open_vhd(file).resize(SIZE + 2 * BLOCK)
    for state in file.states:
        found = open_raw(state)
        assert await read_all(found) == DATA.ljust(found.size_bytes, b"\0")
        if found.size_bytes < size:
            await found.resize(size)
            found = open_raw(file_of(found).killed())
            assert await read_all(found) == DATA.ljust(size, b"\0")
            assert file_of(found).size_bytes == size + 512


@pytest.mark.parametrize("kind", ["fixed", "dynamic", "child"])
@pytest.mark.parametrize("size", [2 * BLOCK, SIZE + 2 * BLOCK])
async def test_a_resize_that_fails_can_be_repeated(kind: str, size: int) -> None:
    """Every sector holds what it did, also after the power has gone then."""
    parent = RecordingFile(await filled(small_dynamic(SIZE, BLOCK)))
    below = open_vhd(RecordingFile(parent.killed()))
    find = open_parent(parent.killed()) if kind == "child" else None
    made = {
        "fixed": contents(new_fixed(SIZE)),
        "dynamic": small_dynamic(SIZE, BLOCK),
        "child": small_child(SIZE, BLOCK, below.footer),
    }[kind]
    content = b"a" * BLOCK + bytes(SIZE - BLOCK)
    for failing in range(20):
        file = FailingFlushes(made)
        disk = open_vhd(file, find_parent=find)
        await write_bytes(disk, 0, b"b" * SIZE)
        await write_bytes(disk, 0, content)
        await disk.flush()
        file.failing = failing
        try:
            await disk.resize(size)
        except StorageError:
            file.failing = -1
        else:
            break
        after = content[:size].ljust(size, b"\0")
        assert await read_all(disk) == (after if disk.size_bytes == size else content)
        for state in (file.killed(), *file.crash_states(3)):
            found = open_vhd(RecordingFile(state), find_parent=find)
            wanted = after if found.size_bytes == size else content
            assert await read_all(found) == wanted
        last = disk.size_bytes - 512  # all of it can be written still
        await write_bytes(disk, last, b"l" * 512)
        await disk.flush()
        found = open_vhd(RecordingFile(file.killed()), find_parent=find)
        assert await read_all(found, last, 512) == b"l" * 512
        await write_bytes(disk, last, bytes(512))
        await disk.resize(size)
        assert await read_all(disk) == after
        await disk.close()
    assert 1 < failing < 19


@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
async def test_qemu_sees_the_new_size(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "d.vhd"
    run_tool(
        ["qemu-img", "create", "-q", "-f", "vpc", "-o", f"subformat={kind}", image, "20M"]
    )  # fmt: skip
    disk = open_raw(image.read_bytes())
    await write_bytes(disk, 0, DATA)
    await disk.resize(9000 << 20 if kind == "dynamic" else 50 << 20)
    await disk.close()
    image.write_bytes(file_of(disk).killed())
    shown = run_tool(["qemu-img", "info", "-f", "vpc", "--output=json", image]).stdout
    assert json.loads(shown)["virtual-size"] == disk.size_bytes
    raw = tmp_path / "start.raw"
    raw.write_bytes(DATA)
    run_tool(["qemu-io", "-f", "vpc", "-c", "read -P 0 30M 1M", image])
    start = ["qemu-img", "dd", "-f", "vpc", "-O", "raw", "bs=512", f"count={SIZE // 512}"]
    run_tool([*start, f"if={image}", f"of={tmp_path / 'out.raw'}"])
    assert (tmp_path / "out.raw").read_bytes() == DATA
