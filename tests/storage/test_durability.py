import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator

import pytest

from pyiscsi_target.storage import durability as durability_module
from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.durability import Durability, sync_file
from pyiscsi_target.storage.workers import Workers


class Medium:
    """Counts syncs; each waits until it may go on, and fails if told."""

    def __init__(self) -> None:
        self.begun = 0
        self.error: OSError | None = None
        self.has_begun = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self) -> None:
        self.begun += 1
        self.has_begun.set()
        self.may_end.wait(10)
        if self.error is not None:
            raise self.error


@pytest.fixture
def medium() -> Medium:
    return Medium()


@pytest.fixture
async def durability(medium: Medium) -> AsyncIterator[Durability]:
    workers = Workers("disk", limit=2)
    yield Durability(medium, workers, "/a/disk")
    medium.may_end.set()
    await workers.close()


async def test_one_flush_is_one_sync(durability: Durability, medium: Medium) -> None:
    await durability.flush()
    await durability.flush()
    assert medium.begun == 2


async def test_flushes_asked_for_together_share_a_sync(
    durability: Durability, medium: Medium
) -> None:
    await asyncio.gather(*(durability.flush() for _ in range(10)))
    assert medium.begun == 1


async def test_a_flush_never_shares_a_sync_that_began_before_it(
    durability: Durability, medium: Medium
) -> None:
    medium.may_end.clear()
    first = asyncio.create_task(durability.flush())
    await asyncio.to_thread(medium.has_begun.wait, 10)
    later = [asyncio.create_task(durability.flush()) for _ in range(5)]
    await asyncio.sleep(0)
    assert medium.begun == 1
    medium.may_end.set()
    await asyncio.gather(first, *later)
    assert medium.begun == 2


async def test_a_cancelled_flush_does_not_cancel_the_others(
    durability: Durability, medium: Medium
) -> None:
    medium.may_end.clear()
    first, second = (asyncio.create_task(durability.flush()) for _ in range(2))
    await asyncio.to_thread(medium.has_begun.wait, 10)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    medium.may_end.set()
    await second
    assert medium.begun == 1


async def test_a_failed_flush_is_never_forgotten(durability: Durability, medium: Medium) -> None:
    medium.error = OSError(errno.EIO, "x")
    together = await asyncio.gather(durability.flush(), durability.flush(), return_exceptions=True)
    medium.error = None  # as Linux does: reported once
    with pytest.raises(StorageError, match=r"/a/disk: flush: .* in doubt") as caught:
        await durability.flush()
    assert caught.value.fault is StorageFault.MEDIUM
    assert [type(error) for error in together] == [StorageError, StorageError]
    assert medium.begun == 1


async def test_a_failed_durable_write_puts_the_file_in_doubt(
    durability: Durability, medium: Medium
) -> None:
    durability.put_in_doubt(OSError(errno.ENOSPC, "x"))
    with pytest.raises(StorageError) as caught:
        await durability.flush()
    assert caught.value.fault is StorageFault.OUT_OF_SPACE
    assert medium.begun == 0


@pytest.mark.parametrize(
    ("hidden", "called"),
    [((), "fdatasync"), (("fdatasync",), "fsync")],
)
def test_the_lightest_sync_there_is(
    monkeypatch: pytest.MonkeyPatch, hidden: tuple[str, ...], called: str
) -> None:
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: seen.append(("fdatasync", fd)), raising=False)
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(("fsync", fd)))
    for name in hidden:
        monkeypatch.delattr(os, name)
    sync_file(7)
    assert seen == [(called, 7)]


def test_macos_empties_the_drives_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr("fcntl.F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr("fcntl.fcntl", lambda *call: seen.append(call))
    sync_file(7)
    assert seen == [(7, 51)]


def test_windows_has_no_fcntl(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(durability_module, "fcntl", None)
    monkeypatch.delattr(os, "fdatasync", raising=False)
    monkeypatch.setattr(os, "fsync", seen.append)
    sync_file(7)
    assert seen == [7]
