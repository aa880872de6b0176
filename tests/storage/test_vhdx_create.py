"""New VHDX files: what they say, what cannot be, and files that are not finished."""

from uuid import UUID

import pytest

from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.chain import ParentPaths
from pyiscsi_target.storage.vhdx import open_vhdx
from pyiscsi_target.storage.vhdx_create import Kind, NewDisk, ParentLink, create_vhdx
from pyiscsi_target.storage.vhdx_format import HEADER_OFFSETS, MIB, TIB
from pyiscsi_target.storage.vhdx_header import read_creator, read_headers
from pyiscsi_target.storage.vhdx_metadata import read_metadata, read_regions
from tests.support.recording_file import RecordingFile

LINK = ParentLink(UUID(int=5), ParentPaths((".\\p.vhdx", "p"), ("C:\\p.vhdx",)))


def created(disk: NewDisk) -> RecordingFile:
    file = RecordingFile()
    create_vhdx(file, disk)
    assert not file.changes  # all of it is on the medium
    return file


def test_what_it_says_of_itself() -> None:
    disk = NewDisk(5 * MIB, Kind.DIFFERENCING, 2 * MIB, 4096, parent=LINK, disk_id=UUID(int=9))
    file = created(disk)
    assert read_creator(file).startswith("pyiscsi-target ")
    headers = read_headers(file)
    regions = read_regions(file, headers.current)
    metadata = read_metadata(file, regions.metadata)
    assert (metadata.disk_bytes, metadata.block_bytes) == (5 * MIB, 2 * MIB)
    assert (metadata.logical_sector_bytes, metadata.physical_sector_bytes) == (4096, 4096)
    assert metadata.disk_id == UUID(int=9)
    assert metadata.has_parent
    assert not metadata.leave_block_allocated
    assert metadata.parent_linkages == (UUID(int=5),)
    assert metadata.parent_paths == ParentPaths((".\\p.vhdx",), ("C:\\p.vhdx",))
    assert metadata.locator["parent_linkage"] == "{00000000-0000-0000-0000-000000000005}"


@pytest.mark.parametrize(
    ("block_bytes", "log_mib"), [(MIB, 4), (8 * MIB, 4), (32 * MIB, 1), (256 * MIB, 1)]
)
def test_small_blocks_have_a_larger_log(block_bytes: int, log_mib: int) -> None:
    file = created(NewDisk(MIB, block_bytes=block_bytes))
    assert read_headers(file).current.log_length == log_mib * MIB
    open_vhdx(file)


@pytest.mark.parametrize(
    ("disk", "match"),
    [
        (NewDisk(0), "the size 0"),
        (NewDisk(64 * TIB + 512), "at most 64 TiB"),
        (NewDisk(513), "whole sectors"),
        (NewDisk(512, logical_sector_bytes=4096), "whole sectors"),
        (NewDisk(MIB, block_bytes=3 * MIB), "power of 2"),
        (NewDisk(MIB, block_bytes=512 * MIB), "power of 2"),
        (NewDisk(MIB, block_bytes=MIB // 2), "power of 2"),
        (NewDisk(MIB, logical_sector_bytes=1024), "neither 512 nor 4096"),
        (NewDisk(MIB, Kind.DIFFERENCING), "needs a parent"),
        (NewDisk(MIB, parent=LINK), "no other has one"),
    ],
)
def test_disks_that_cannot_be(disk: NewDisk, match: str) -> None:
    file = RecordingFile()
    with pytest.raises(StorageError, match=match) as caught:
        create_vhdx(file, disk)
    assert caught.value.fault is StorageFault.INVALID
    assert file.content == b""


def test_a_file_is_none_before_it_is_complete() -> None:
    class Watched(RecordingFile):
        def flush_blocking(self) -> None:
            states.extend(self.random_states(5))
            super().flush_blocking()

    states: list[bytes] = []
    create_vhdx(Watched(), NewDisk(3 * MIB, Kind.FIXED, MIB, log_bytes=MIB))
    opened = 0
    for content in states:
        try:
            open_vhdx(RecordingFile(content))
        except StorageError:
            continue
        opened += 1
    assert opened < len(states) // 2  # only those of the last flush can be whole


def test_either_header_says_the_same_of_the_content() -> None:
    """So that children of a new disk go on to fit when one of its headers is damaged."""
    whole, found = created(NewDisk(8 * MIB)), set()
    for damaged in HEADER_OFFSETS:
        content = bytearray(whole.killed())
        content[damaged] ^= 1
        header = read_headers(RecordingFile(bytes(content))).current
        found.add((header.data_write_guid, header.file_write_guid))
    assert len(found) == 1
