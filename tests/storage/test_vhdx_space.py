"""Space in a VHDX file: who has it, how the file grows, and what is cut off at the end."""

import asyncio

import pytest

from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.vhdx_format import MIB
from pyiscsi_target.storage.vhdx_space import GROWTH_BYTES_MAX, Space, SpaceMap
from tests.support.recording_file import JitteryFile, RecordingFile
from tests.support.vhdx_disks import fill, new_file, open_disk, read, reopened, write


class SizedFile(RecordingFile):
    """Only its size matters, and how often it changed."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    @property
    def size_bytes(self) -> int:
        return self.sizes[-1] if self.sizes else 0

    async def set_size(self, size_bytes: int) -> None:
        self.sizes.append(size_bytes)


def test_space_is_taken_once() -> None:
    space = SpaceMap()
    assert space.claim(0, MIB)
    assert space.claim(4 * MIB, 2 * MIB)
    for start, length in ((3 * MIB, 2 * MIB), (5 * MIB, MIB), (0, 9 * MIB)):
        assert not space.claim(start, length)
    assert space.end_bytes == 6 * MIB
    assert list(space.gaps(8 * MIB + 512)) == [(MIB, 3 * MIB), (6 * MIB, 2 * MIB + 512)]
    space.free(4 * MIB, MIB, clean=False)
    assert space.claim(3 * MIB, 2 * MIB)


def test_only_clean_space_is_given_away() -> None:
    space = SpaceMap()
    space.claim(0, 2 * MIB)
    space.claim(8 * MIB, MIB)
    assert space.take_clean(MIB) is None
    space.free(2 * MIB, 2 * MIB, clean=True)
    space.free(5 * MIB, 3 * MIB, clean=True)
    assert space.take_clean(3 * MIB) == 5 * MIB
    assert space.take_clean(MIB) == 2 * MIB
    assert space.take_clean(2 * MIB) is None
    assert not space.claim(5 * MIB, MIB)


async def test_the_file_grows_by_what_it_has_grown() -> None:
    file = SizedFile()
    space = Space(file, SpaceMap(), punches=True)
    places = [await space.take(MIB) for _ in range(1025)]
    assert places == [number * MIB for number in range(1025)]
    grown = [after - before for before, after in zip([0, *file.sizes], file.sizes, strict=False)]
    assert [size // MIB for size in grown] == [1, 1, 2, 4, 8, 16, 32, 64, 128, 256, 256, 256, 256]
    await space.take(2 * GROWTH_BYTES_MAX)
    assert file.size_bytes == 1280 * MIB + 2 * GROWTH_BYTES_MAX


async def test_where_there_is_no_room_for_more_it_grows_by_what_is_wanted() -> None:
    file = RecordingFile()
    file.space_bytes = 3 * MIB
    space = Space(file, SpaceMap(), punches=True)
    assert [await space.take(MIB) for _ in range(3)] == [0, MIB, 2 * MIB]
    assert file.size_bytes == 3 * MIB


async def test_what_was_punched_is_free_after_a_flush() -> None:
    file = RecordingFile()
    space = Space(file, SpaceMap(), punches=True)
    first = await space.take(MIB)
    await space.take(MIB)
    await space.release([first], MIB)
    assert space.take_clean(MIB) is None
    await space.flush()
    assert space.take_clean(MIB) == first


async def test_the_room_that_is_left_over_is_cut_off_at_the_end() -> None:
    file = new_file(64 * MIB)
    disk = open_disk(file)
    for block in range(21):
        await write(disk, block * MIB, fill(block + 1, 512))
    grown_bytes = file.size_bytes
    killed = reopened(file.killed())
    assert killed.size_bytes == 64 * MIB
    assert await read(killed, 20 * MIB, 512) == fill(21, 512)
    await disk.close()
    assert grown_bytes - file.size_bytes == 11 * MIB  # 32 blocks less 21
    assert [finding.text for finding in await reopened(file.killed()).findings()] == []


async def test_first_writes_that_come_at_once_share_an_entry_of_the_log() -> None:
    file = JitteryFile(new_file(64 * MIB).killed(), seed=1)  # so that they wait for one another
    disk = open_disk(file)
    await disk.write(0, [fill(1, 512)])
    before = len(file.changes)
    await asyncio.gather(*(disk.write(block * MIB, [fill(2, 512)]) for block in range(1, 33)))
    metadata = [
        change
        for change in file.changes[before:]
        if change.data is not None and change.data.startswith(b"loge")
    ]
    assert len(metadata) <= 2  # the first may begin alone
    for block in range(1, 33):
        assert await read(disk, block * MIB, 512) == fill(2, 512)


async def test_what_cannot_be_emptied_is_not_used_again() -> None:
    file = RecordingFile()
    space = Space(file, SpaceMap(), punches=True)
    places = [await space.take(MIB) for _ in range(3)]
    file.write_blocking(0, fill(1, 3 * MIB))
    file.fail = StorageError(StorageFault.MEDIUM, "EIO")
    with pytest.raises(StorageError, match="EIO"):
        await space.release(places, MIB)
    await space.flush()
    assert space.unused_bytes == MIB
    assert [space.take_clean(MIB) for _ in range(2)] == places[1:]
    assert space.take_clean(MIB) is not None  # of what the file grew by
    assert space.take_clean(MIB) is None
