"""Children put into their parents, also when the power goes meanwhile."""

import random
from collections.abc import Callable

import pytest

from pyiscsi_target.storage.base import BackingStore, StorageError
from pyiscsi_target.storage.merge import merge_into_parent
from pyiscsi_target.storage.vhd import open_vhd
from pyiscsi_target.storage.vhd_create import new_fixed
from pyiscsi_target.storage.vhdx_create import Kind
from tests.support import vhdx_disks
from tests.support.images import MIB
from tests.support.recording_file import RecordingFile
from tests.support.vhd_files import (
    contents,
    open_blocks,
    open_parent,
    read_all,
    small_child,
    small_dynamic,
    write_bytes,
)

BLOCK = 16 * 512
SIZE = 6 * BLOCK + 512


class Watched(RecordingFile):
    """Keeps what a crash may leave, or a share of it."""

    def __init__(self, content: bytes, share: float = 1.0) -> None:
        super().__init__(content)
        self.states: set[bytes] = set()
        self._share = share
        self._random = random.Random(4)

    def flush_blocking(self) -> None:
        for state in self.crash_states(5):
            if self._random.random() < self._share:
                self.states.add(state)
        super().flush_blocking()


def forget(done: int, total: int) -> None:
    assert 0 <= done <= total


def over(parent: BackingStore) -> Callable[[object], BackingStore]:
    return lambda paths: parent


async def a_chain(parent: bytes) -> tuple[bytes, bytes, bytes]:
    """(parent, child of it, what the child holds)."""
    file = RecordingFile(parent)
    above = open_vhd(file)
    await write_bytes(above, 0, random.Random(1).randbytes(4 * BLOCK))
    await above.close()
    raw = file.killed()
    child = RecordingFile(small_child(SIZE, BLOCK, above.footer))
    disk = open_blocks(child, open_parent(raw))
    await write_bytes(disk, 512, b"c" * 1024)
    await write_bytes(disk, 3 * BLOCK - 512, b"d" * 3 * BLOCK)
    await disk.deallocate(0, 512)
    await disk.deallocate(BLOCK, BLOCK)
    content = await read_all(disk)
    await disk.close()
    return raw, child.killed(), content


@pytest.fixture(params=["fixed", "dynamic"])
def empty(request: pytest.FixtureRequest) -> bytes:
    is_fixed = request.param == "fixed"
    return contents(new_fixed(SIZE)) if is_fixed else small_dynamic(SIZE, BLOCK)


async def test_the_parent_holds_what_the_child_did(empty: bytes) -> None:
    parent, child, content = await a_chain(empty)
    file = RecordingFile(parent)
    disk = open_blocks(RecordingFile(child), over(open_vhd(file)))
    await merge_into_parent(disk, forget)
    await disk.close()
    assert await read_all(open_vhd(RecordingFile(file.killed()))) == content
    with pytest.raises(StorageError, match="time stamp"):
        open_blocks(RecordingFile(child), open_parent(file.killed()))


async def test_the_power_goes_meanwhile(empty: bytes) -> None:
    """The child shows the same disk until the parent does."""
    parent, child, content = await a_chain(empty)
    file = Watched(parent)
    disk = open_blocks(RecordingFile(child), over(open_vhd(file)))
    await merge_into_parent(disk, forget)
    on_child = 0
    for state in file.states | set(file.crash_states(5)):
        try:
            again = open_blocks(RecordingFile(child), open_parent(state))
        except StorageError:
            assert await read_all(open_vhd(RecordingFile(state))) == content
        else:
            assert await read_all(again) == content
            on_child += 1
    assert on_child > 5


@pytest.mark.parametrize("size", [SIZE + 512, SIZE + 9 * BLOCK, 2 * BLOCK + 512])
async def test_the_power_goes_while_the_size_follows(empty: bytes, size: int) -> None:
    """What the child shows is the same at all times: also when the parent is known as the child."""
    file = RecordingFile(empty)
    above = open_vhd(file)
    await write_bytes(above, 0, random.Random(1).randbytes(SIZE))
    await above.close()
    recorded = Watched(file.killed())
    child = RecordingFile(small_child(size, BLOCK, above.footer))
    disk = open_blocks(child, open_parent(file.killed()))
    await write_bytes(disk, 512, b"c" * 1024)
    await write_bytes(disk, size - 1024, b"d" * 512)
    content = await read_all(disk)
    await disk.close()
    disk = open_blocks(RecordingFile(child.killed()), over(open_vhd(recorded)))
    await merge_into_parent(disk, forget, adopts=True)
    states = recorded.states | set(recorded.crash_states(5))
    assert len(states) > 5
    for state in states:
        again = open_blocks(RecordingFile(child.killed()), open_parent(state))
        assert await read_all(again) == content
    merged = open_vhd(RecordingFile(recorded.killed()))
    assert merged.size_bytes == size
    assert await read_all(merged) == content
    open_blocks(RecordingFile(small_child(size, BLOCK, disk.footer)), over(merged))
    again = open_blocks(RecordingFile(child.killed()), over(merged))
    await write_bytes(again, 0, b"e" * 512)  # knows its parent by the new name from now on
    await again.close()
    changed = again.file.killed()  # type: ignore[attr-defined]
    again = open_blocks(RecordingFile(changed), open_parent(recorded.killed()))
    assert await read_all(again) == b"e" * 512 + content[512:]


async def test_a_disk_without_a_parent() -> None:
    disk = open_blocks(RecordingFile(small_dynamic(SIZE, BLOCK)))
    with pytest.raises(StorageError, match="no parent"):
        await merge_into_parent(disk, forget)


# VHDX


async def a_vhdx_chain(kind: Kind) -> tuple[bytes, bytes, bytes]:
    """As `a_chain`."""
    file = vhdx_disks.new_file(6 * MIB, kind)
    above = vhdx_disks.open_disk(file)
    await write_bytes(above, 0, random.Random(1).randbytes(3 * MIB))
    await above.close()
    raw = file.killed()
    child = vhdx_disks.new_file(6 * MIB, parent=vhdx_disks.reopened(raw))
    disk = vhdx_disks.open_disk(child, vhdx_disks.reopened(raw))
    await write_bytes(disk, 512, b"c" * 1024)
    await write_bytes(disk, 2 * MIB - 512, b"d" * 3 * MIB)
    await disk.deallocate(MIB, 65536)
    await disk.deallocate(5 * MIB, MIB)
    content = await read_all(disk)
    await disk.close()
    return raw, child.killed(), content


@pytest.mark.parametrize("kind", [Kind.FIXED, Kind.DYNAMIC])
async def test_a_vhdx_is_merged_even_if_the_power_goes_meanwhile(kind: Kind) -> None:
    parent, child, content = await a_vhdx_chain(kind)
    file = Watched(parent, 0.5)
    disk = vhdx_disks.reopened(child, vhdx_disks.open_disk(file))
    await merge_into_parent(disk, forget)
    await disk.close()
    assert len(file.states) > 5
    assert await read_all(vhdx_disks.reopened(file.killed())) == content
    with pytest.raises(StorageError, match="was changed since"):
        vhdx_disks.reopened(child, vhdx_disks.reopened(file.killed()))
    for state in file.states:
        try:
            again = vhdx_disks.reopened(child, vhdx_disks.reopened(state))
        except StorageError:
            assert await read_all(vhdx_disks.reopened(state)) == content
        else:
            assert await read_all(again) == content


@pytest.mark.parametrize("size", [6 * MIB + 512, 9 * MIB, 2 * MIB + 512])
@pytest.mark.parametrize("kind", [Kind.FIXED, Kind.DYNAMIC])
async def test_the_power_goes_while_a_vhdx_follows_in_size(kind: Kind, size: int) -> None:
    parent, _, _ = await a_vhdx_chain(kind)
    file = vhdx_disks.new_file(size, parent=vhdx_disks.reopened(parent))
    disk = vhdx_disks.open_disk(file, vhdx_disks.reopened(parent))
    await write_bytes(disk, 512, b"c" * 1024)
    await write_bytes(disk, size - 1024, b"d" * 512)
    content = await read_all(disk)
    await disk.close()
    child, recorded = file.killed(), Watched(parent, 0.3)
    disk = vhdx_disks.reopened(child, vhdx_disks.open_disk(recorded))
    await merge_into_parent(disk, forget, adopts=True)
    for state in (*recorded.states, recorded.killed()):
        again = vhdx_disks.reopened(child, vhdx_disks.reopened(state))
        assert await read_all(again) == content
    merged = vhdx_disks.reopened(recorded.killed())
    assert merged.size_bytes == size
    assert merged.data_write_guid == disk.data_write_guid
    await write_bytes(again, 0, b"e" * 512)  # knows its parent by the new name from now on
    await again.close()
    changed = again.file.killed()  # type: ignore[attr-defined]
    again = vhdx_disks.reopened(changed, vhdx_disks.reopened(recorded.killed()))
    assert await read_all(again) == b"e" * 512 + content[512:]
