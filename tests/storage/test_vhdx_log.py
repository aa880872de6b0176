"""When entries of the log reach the file, and what the log says of the file's size."""

import pytest

from pyiscsi_target.storage.base import StorageError
from pyiscsi_target.storage.vhdx_format import LOG_SECTOR_BYTES, MIB, NO_GUID
from pyiscsi_target.storage.vhdx_header import Headers, read_headers
from pyiscsi_target.storage.vhdx_log import LogWriter
from pyiscsi_target.storage.vhdx_replay import ActiveSequence, Log
from tests.support.recording_file import RecordingFile
from tests.support.vhdx_disks import new_file

TARGET = 3 * MIB  # the BAT


def sector(fill: int) -> bytes:
    return bytes((fill,)) * LOG_SECTOR_BYTES


async def begun() -> tuple[RecordingFile, Headers, LogWriter]:
    file = new_file()
    headers = read_headers(file)
    log = LogWriter(file, headers)
    await log.begin()
    return file, headers, log


def left(file: RecordingFile) -> ActiveSequence:
    """What the log in the file would replay."""
    copy = RecordingFile(file.killed())
    found = Log(copy, read_headers(copy).current).active_sequence()
    assert found is not None
    return found


async def test_an_entry_is_applied_only_when_it_is_durable() -> None:
    file, _, log = await begun()
    await log.append({TARGET: sector(1)})
    assert not log.is_durable
    await log.apply()
    assert file.read_blocking(TARGET, LOG_SECTOR_BYTES) == bytes(LOG_SECTOR_BYTES)
    mark = log.mark()
    await log.append({TARGET: sector(2)})
    await file.flush()
    log.flushed(mark)  # the second may have come too late for this flush
    await log.apply()
    assert file.read_blocking(TARGET, LOG_SECTOR_BYTES) == sector(1)
    assert not log.is_applied
    await log.flush()
    await log.apply()
    assert file.read_blocking(TARGET, LOG_SECTOR_BYTES) == sector(2)
    assert log.is_applied
    assert log.is_durable


async def test_the_tail_follows_what_is_applied_and_flushed() -> None:
    file, _, log = await begun()
    for fill in (1, 2, 3):
        await log.append({TARGET: sector(fill)})
    assert len(left(file).entries) == 4  # with the empty one that began it
    for _ in range(2):
        await log.flush()
        await log.apply()
    await log.append({TARGET: sector(4)})
    assert len(left(file).entries) == 1


async def test_what_the_log_says_of_the_size() -> None:
    file, _, log = await begun()
    size = file.size_bytes
    await file.set_size(size + MIB)
    await log.append({TARGET: sector(1)})
    head = left(file).head
    assert (head.flushed_file_offset, head.last_file_offset) == (size, size + MIB)
    await log.flush()
    await log.append({TARGET: sector(2)})
    head = left(file).head
    assert (head.flushed_file_offset, head.last_file_offset) == (size + MIB, size + MIB)


async def test_many_sectors_are_several_entries() -> None:
    file, _, log = await begun()
    await log.append({TARGET + at * LOG_SECTOR_BYTES: sector(at) for at in range(200)})
    # The first filled its half, and was applied before the second began the other.
    assert [header.descriptor_count for _, header in left(file).entries] == [74]
    await log.end()
    assert read_headers(file).current.log_guid == NO_GUID
    for at in range(200):
        assert file.read_blocking(TARGET + at * LOG_SECTOR_BYTES, LOG_SECTOR_BYTES) == sector(at)


async def test_a_log_that_cannot_be_named_is_begun_anew_elsewhere() -> None:
    """The headers may name the first by then: it stays whole."""
    file, headers, log = await begun()
    before = headers.current.log_guid
    second = LogWriter(file, headers)
    second._half = log._half  # as if it were the same that failed
    await second.begin()
    assert headers.current.log_guid != before
    content = bytearray(file.killed())
    assert content.count(before.bytes_le, MIB, 2 * MIB) == 1


async def test_a_file_without_a_log_is_not_logged_to() -> None:
    file = new_file()
    headers = read_headers(file)
    object.__setattr__(headers.current, "log_length", 0)
    with pytest.raises(StorageError, match="no room for a log"):
        await LogWriter(file, headers).begin()
