import asyncio
import ctypes
import errno
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest

from pyiscsi_target.storage import file_io as module
from pyiscsi_target.storage.base import Buffer, Extent, Provisioning, StorageError, StorageFault
from pyiscsi_target.storage.file_io import FileIo, remaining
from pyiscsi_target.storage.pace import Pace
from tests.storage.conftest import NOWAIT, POSITIONED

LENGTH_BYTES = 64 * 1024
real_preadv: Callable[..., int] = getattr(os, "preadv", len)
real_pwritev: Callable[..., int] = getattr(os, "pwritev", len)

pytestmark = pytest.mark.skipif(real_preadv is len, reason="these calls are replaced here")


class Clock:
    """Stands still unless told; `steps_s` are added one a reading. Its thread always waits."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.steps_s: list[float] = []
        self.waits = count().__next__

    def __call__(self) -> float:
        self.now_s += self.steps_s.pop(0) if self.steps_s else 0.0
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


Maker = Callable[..., FileIo]


@pytest.fixture
async def make(tmp_path: Path, clock: Clock) -> AsyncIterator[Maker]:
    """Makes a FileIo on a file full of `a`; all are closed at the end, whatever they think."""
    made: list[FileIo] = []

    def maker(**options: object) -> FileIo:
        path = tmp_path / "disk.img"
        path.write_bytes(b"a" * LENGTH_BYTES)
        fd = os.open(path, os.O_RDWR)
        paces = {"read_pace": Pace(clock, clock.waits), "write_pace": Pace(clock, clock.waits)}
        made.append(FileIo(fd, "/a/disk", **{**paces, **options}))  # type: ignore[arg-type]
        return made[-1]

    yield maker
    for io in made:
        try:
            await io.close()
        except StorageError as error:
            assert "in doubt" in str(error)  # noqa: PT017


def hide(monkeypatch: pytest.MonkeyPatch, names: Sequence[str]) -> None:
    for name in names:
        monkeypatch.delattr(os, name)


def buffer(length_bytes: int = 512) -> memoryview:
    return memoryview(bytearray(length_bytes))


# Reads


def test_remaining() -> None:
    data = [b"abc", b"", b"de", b"f"]
    joined = b"abcdef"
    for written in range(7):
        left = remaining(data, written)
        assert b"".join(left) == joined[written:]
        assert all(map(len, left))


async def test_what_is_not_cached_is_read_in_a_thread(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = make()
    threads: list[bool] = []

    def preadv(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        threads.append(threading.current_thread() is not threading.main_thread())
        if flags:
            raise BlockingIOError(errno.EAGAIN, "not cached")
        return real_preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    into = buffer()
    assert not io.read_now(0, into)
    await io.read(0, into)
    assert into == b"a" * 512
    assert threads == [False, True]


async def test_what_is_cached_in_part_is_not_read_now(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = make()
    monkeypatch.setattr(os, "preadv", lambda *_: 100)
    assert not io.read_now(0, buffer())


async def test_a_cached_read_asks_for_no_more_than_the_cache(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = make()
    seen: list[object] = []

    def preadv(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        seen.append(flags)
        return len(buffers[0])

    monkeypatch.setattr(os, "preadv", preadv)
    if io.read_now.__name__ != "_read_cached":
        pytest.skip("this file system does not know RWF_NOWAIT")
    assert io.read_now(0, buffer())
    assert seen == [os.RWF_NOWAIT]


async def test_short_reads_go_on_where_they_stopped(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = make()

    def preadv(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        return real_preadv(fd, [buffers[0][:100]], offset)

    monkeypatch.setattr(os, "preadv", preadv)
    into = buffer(4096)
    await io.read(512, into)
    assert into == b"a" * 4096


async def test_a_medium_error_says_where(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    io = make()

    def preadv(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if offset + len(buffers[0]) <= 1024:
            return real_preadv(fd, buffers, offset)
        if offset < 1024:
            return real_preadv(fd, [buffers[0][: 1024 - offset]], offset)
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(os, "preadv", preadv)
    assert not io.read_now(0, buffer(4096))
    with pytest.raises(StorageError, match="/a/disk: read at byte 1024") as caught:
        await io.read(0, buffer(4096))
    assert caught.value.fault is StorageFault.MEDIUM
    assert caught.value.offset_bytes == 1024
    await io.read(0, buffer(1024))


async def test_without_nowait_a_slow_file_reads_in_threads(
    make: Maker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, NOWAIT)
    io = make()
    assert io.read_now(0, buffer())
    for _ in range(2):  # the first makes wary
        clock.steps_s = [0.0, 0.05]  # the call takes 50 ms
        assert io.read_now(0, buffer())
    assert not io.read_now(0, buffer())
    clock.now_s += 60.0
    assert io.read_now(0, buffer())


async def test_where_calls_take_turns_nothing_runs_on_the_loop(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, POSITIONED)
    io = make()
    assert not io.read_now(0, buffer())
    assert not io.write_now(0, [b"x" * 512])


async def test_reads_of_threads_that_take_turns_do_not_mix(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, POSITIONED)
    io = make()
    blocks = [bytes([number]) * 512 for number in range(64)]
    await asyncio.gather(*(io.write(512 * at, [block]) for at, block in enumerate(blocks)))
    into = [buffer() for _ in blocks]
    await asyncio.gather(*(io.read(512 * at, one) for at, one in enumerate(into)))
    assert [bytes(one) for one in into] == blocks


# Writes


async def test_a_slow_file_is_written_in_threads_for_a_while(make: Maker, clock: Clock) -> None:
    io = make()
    assert io.write_now(0, [b"b" * 512])
    for _ in range(2):  # the first makes wary
        clock.steps_s = [0.0, 0.05]  # the call takes 50 ms
        assert io.write_now(0, [b"c" * 512])
    assert not io.write_now(0, [b"d" * 512])
    into = buffer()
    await io.read(0, into)
    assert into == b"c" * 512
    clock.now_s += 60.0
    assert io.write_now(0, [b"e" * 512])


async def test_a_slow_failure_makes_wary(
    make: Maker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = make()

    def pwritev(fd: int, data: Sequence[Buffer], offset: int, flags: int = 0) -> int:
        clock.now_s += 30.0
        raise OSError(errno.EIO, "timed out")

    monkeypatch.setattr(os, "pwritev", pwritev)
    for _ in range(2):
        with pytest.raises(StorageError):
            io.write_now(0, [bytes(512)])
    assert not io.write_now(0, [bytes(512)])


async def test_short_writes_go_on_where_they_stopped(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = make()

    def pwritev(fd: int, data: Sequence[Buffer], offset: int, flags: int = 0) -> int:
        return real_pwritev(fd, [memoryview(data[0])[:100]], offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    assert io.write_now(512, [b"b" * 512, b"c" * 512])
    await io.write(2048, [b"d" * 512, b"e" * 512])
    await io.write(4096, [b"f" * 512, b"g" * 512], durable=True)
    into = buffer(5120)
    await io.read(0, into)
    assert bytes(into) == b"".join(bytes([letter]) * 512 for letter in b"abca" + b"deaa" + b"fg")


async def test_a_write_that_writes_nothing_is_an_error(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = make()
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(StorageError) as caught:
        io.write_now(0, [bytes(512)])
    assert caught.value.fault is StorageFault.MEDIUM


@pytest.mark.parametrize(
    ("code", "fault"),
    [(errno.EIO, StorageFault.MEDIUM), (errno.ENOSPC, StorageFault.OUT_OF_SPACE)],
)
async def test_failed_writes(
    make: Maker, monkeypatch: pytest.MonkeyPatch, code: int, fault: StorageFault
) -> None:
    io = make()

    def pwritev(fd: int, data: Sequence[Buffer], offset: int, flags: int = 0) -> int:
        raise OSError(code, "x")

    monkeypatch.setattr(os, "pwritev", pwritev)
    with pytest.raises(StorageError, match="/a/disk: write at byte 512") as caught:
        io.write_now(512, [bytes(512)])
    assert (caught.value.fault, caught.value.offset_bytes) == (fault, 512)
    for durable in (False, True):
        with pytest.raises(StorageError) as caught:
            await io.write(512, [bytes(512)], durable=durable)
        assert (caught.value.fault, caught.value.offset_bytes) == (fault, 512)
    await io.flush()  # a write that failed by itself says nothing about others


@pytest.fixture
def full_device() -> int:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    return os.open("/dev/full", os.O_RDWR)


async def test_a_device_that_is_full(full_device: int) -> None:
    io = FileIo(full_device, "/dev/full")
    with pytest.raises(StorageError) as caught:
        io.write_now(0, [bytes(512)])
    assert caught.value.fault is StorageFault.OUT_OF_SPACE
    with pytest.raises(StorageError) as caught:
        await io.write(0, [bytes(512)])
    assert caught.value.fault is StorageFault.OUT_OF_SPACE
    with pytest.raises(StorageError):  # it has no sync either
        await io.close()


@pytest.fixture
def tiny_file_system(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where this may mount one."""
    mount = tmp_path / "tiny"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"mounting is not allowed: {done.stderr.strip()}")
    yield mount
    subprocess.run(["umount", mount], check=True)


async def test_a_file_system_that_is_full(tiny_file_system: Path) -> None:
    path = tiny_file_system / "disk.img"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 4 << 20)
    io = FileIo(fd, str(path))
    with pytest.raises(StorageError, match=str(path)) as caught:
        io.write_now(0, [b"x" * 4096] * 512)
    assert caught.value.fault is StorageFault.OUT_OF_SPACE
    with pytest.raises(StorageError) as caught:
        await io.write(2 << 20, [b"x" * 4096], durable=True)
    assert caught.value.fault is StorageFault.OUT_OF_SPACE
    await io.flush()  # the failed writes put nothing in doubt
    await io.punch(0, 4 << 20)
    assert io.write_now(2 << 20, [b"x" * 4096])  # and with space the disk works again
    await io.close()


# Durability


async def test_a_durable_write_is_one_call_with_dsync(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = make()
    seen: list[object] = []

    def pwritev(fd: int, data: Sequence[Buffer], offset: int, flags: int = 0) -> int:
        seen.append(flags)
        return sum(map(len, data))

    monkeypatch.setattr(os, "pwritev", pwritev)
    monkeypatch.setattr(os, "fdatasync", lambda fd: seen.append("fdatasync"))
    await io.write(0, [bytes(512)] * 3, durable=True)
    assert seen == [os.RWF_DSYNC]


async def test_without_dsync_a_durable_write_syncs(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, NOWAIT)
    io = make()
    seen: list[object] = []

    def pwritev(fd: int, data: Sequence[Buffer], offset: int, flags: int = 0) -> int:
        seen.append("write")
        return sum(map(len, data))

    monkeypatch.setattr(os, "pwritev", pwritev)
    monkeypatch.setattr(os, "fdatasync", lambda fd: seen.append("fdatasync"))
    await io.write(0, [bytes(512)] * 3, durable=True)
    assert seen == ["write", "fdatasync"]


async def test_a_failed_durable_write_whose_sync_failed_is_remembered(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = make()

    def pwritev(fd: int, data: Sequence[Buffer], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EIO, "write-back failed")
        return sum(map(len, data))

    monkeypatch.setattr(os, "pwritev", pwritev)
    with pytest.raises(StorageError):
        await io.write(0, [bytes(512)], durable=True)
    with pytest.raises(StorageError, match="in doubt"):
        await io.flush()


async def test_a_failed_flush_leaves_reads_and_writes_working(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = make()

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "write-back failed")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fails)
        with pytest.raises(StorageError) as caught:
            await io.flush()
    assert caught.value.fault is StorageFault.MEDIUM
    with pytest.raises(StorageError, match="in doubt"):
        await io.flush()
    assert io.write_now(0, [b"w" * 512])
    await io.write(512, [b"x" * 512], durable=True)
    into = buffer()
    await io.read(0, into)
    assert into == b"w" * 512


async def test_close_reports_a_failed_flush_and_closes(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = make()

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "write-back failed")

    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(StorageError):
        await io.close()
    assert not io.read_now(0, buffer())
    await io.close()


async def test_memory_and_read_only_files_have_nothing_to_flush(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda fd: pytest.fail("synced"))
    await make(memory=True).flush()
    await make(read_only=True).flush()


# Allocation


async def test_devices_are_punched_in_whole_logical_blocks(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    io, seen = make(allocation_unit_bytes=4096), []

    def allocate(fd: int, mode: int, offset_bytes: int, length_bytes: int) -> bool:
        seen.append((offset_bytes, length_bytes))
        os.pwrite(fd, bytes(length_bytes), offset_bytes)
        return True

    monkeypatch.setattr(module, "allocate_mode", allocate)
    await io.punch(512, 12288)
    await io.punch(20480 + 512, 1024)  # no whole block in it
    assert seen == [(4096, 8192)]
    into = buffer(24576)
    await io.read(0, into)
    expected = bytearray(b"a" * 24576)
    expected[512:12800] = bytes(12288)
    expected[20992:22016] = bytes(1024)
    assert into == expected


async def test_a_failed_punch(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    io = make()

    def fails(fd: int, mode: int, offset_bytes: int, length_bytes: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr("pyiscsi_target.storage.holes.fallocate", fails)
    with pytest.raises(StorageError, match="/a/disk: allocate at byte 512") as caught:
        await io.punch(512, 512)
    assert caught.value.fault is StorageFault.MEDIUM


async def test_extents_of_several_ranges(make: Maker) -> None:
    io = make()
    await io.set_size(4 * LENGTH_BYTES)
    found = await io.extents([(0, 4096), (8192, 8192 + 512), (LENGTH_BYTES - 512, LENGTH_BYTES)], 9)
    assert found == [
        Extent(0, 4096, Provisioning.MAPPED),
        Extent(8192, 512, Provisioning.MAPPED),
        Extent(LENGTH_BYTES - 512, 512, Provisioning.MAPPED),
    ]
    assert await io.extents([(0, 4096), (8192, 8192 + 512)], 1) == found[:1]


async def test_a_run_of_data_is_looked_for_once(
    make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = make()
    asked: list[int] = []
    real_lseek = os.lseek

    def lseek(fd: int, position: int, whence: int) -> int:
        asked.append(position)
        return real_lseek(fd, position, whence)

    monkeypatch.setattr(os, "lseek", lseek)
    ranges = [(start, start + 512) for start in range(4096, LENGTH_BYTES, 4096)]
    found = await io.extents(ranges, 99)
    assert found == [Extent(start, 512, Provisioning.MAPPED) for start, _ in ranges]
    assert max(asked) < 4096 + 512


async def test_what_lies_behind_the_end_is_no_hole(make: Maker) -> None:
    """It cannot be read, and must not pass for zeroes."""
    io = make()
    end = LENGTH_BYTES
    assert await io.extents([(end, end + 512)], 9) == [Extent(end, 512, Provisioning.MAPPED)]
    assert await io.extents([(0, end + 512)], 9) == [Extent(0, end + 512, Provisioning.MAPPED)]


async def test_a_read_only_file_reserves_nothing(make: Maker) -> None:
    with pytest.raises(StorageError) as caught:
        await make(read_only=True).reserve(0, 4096)
    assert caught.value.fault is StorageFault.READ_ONLY


async def test_no_space_to_reserve(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, mode: int, offset_bytes: int, length_bytes: int) -> bool:
        assert mode == 0x01
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(module, "allocate_mode", full)
    with pytest.raises(StorageError) as caught:
        await make().reserve(0, 4096)
    assert caught.value.fault is StorageFault.OUT_OF_SPACE
