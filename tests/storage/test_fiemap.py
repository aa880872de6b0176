"""What FIEMAP says, of real files and of file systems that are made up."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyiscsi_target.storage import fiemap
from pyiscsi_target.storage.fiemap import is_supported, unwritten_runs
from pyiscsi_target.storage.holes import PUNCH, ZERO, allocate_mode, can_anchor

KIB = 1024
SIZE_BYTES = 1 << 20


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "disk.img", os.O_RDWR | os.O_CREAT)
    os.ftruncate(opened, SIZE_BYTES)
    yield opened
    os.close(opened)


def test_space_without_data(fd: int, tmp_path: Path) -> None:
    if not can_anchor(fd, tmp_path):
        pytest.skip("the file system of the temporary directory does not tell")
    assert list(unwritten_runs(fd, 0, SIZE_BYTES)) == []
    allocate_mode(fd, ZERO, 64 * KIB, 128 * KIB)
    assert list(unwritten_runs(fd, 0, SIZE_BYTES)) == [(64 * KIB, 192 * KIB)]
    assert list(unwritten_runs(fd, 96 * KIB, 100 * KIB)) == [(96 * KIB, 100 * KIB)]
    os.pwrite(fd, b"w" * 64 * KIB, 96 * KIB)
    os.fsync(fd)
    expected = [(64 * KIB, 96 * KIB), (160 * KIB, 192 * KIB)]
    assert list(unwritten_runs(fd, 0, SIZE_BYTES)) == expected
    allocate_mode(fd, PUNCH, 0, 128 * KIB)
    assert list(unwritten_runs(fd, 0, SIZE_BYTES)) == [(160 * KIB, 192 * KIB)]


def test_more_pieces_than_one_call_tells(fd: int, tmp_path: Path) -> None:
    if not can_anchor(fd, tmp_path):
        pytest.skip("the file system of the temporary directory does not tell")
    count = 2 * fiemap._EXTENTS_AT_ONCE + 3
    for index in range(count):
        allocate_mode(fd, ZERO, index * 64 * KIB, 32 * KIB)
    found = list(unwritten_runs(fd, 0, count * 64 * KIB))
    assert found == [(at * 64 * KIB, at * 64 * KIB + 32 * KIB) for at in range(count)]


class FakeFcntl:
    """A file system with these (offset, length, flags) extents, or an error."""

    def __init__(self, extents: list[tuple[int, int, int]], code: int = 0) -> None:
        self.extents = extents
        self.code = code

    def ioctl(self, fd: int, request: int, answer: bytearray, mutate: bool) -> int:
        assert (request, mutate) == (0xC020660B, True)
        if self.code:
            raise OSError(self.code, os.strerror(self.code))
        start, length, _, _, count, _ = fiemap._HEADER.unpack_from(answer)
        found = [
            extent
            for extent in self.extents
            if extent[0] < start + length and extent[0] + extent[1] > start
        ][:count]
        fiemap._HEADER.pack_into(answer, 0, start, length, 0, len(found), count, 0)
        for index, (offset, size, flags) in enumerate(found):
            fiemap._EXTENT.pack_into(answer, 32 + 56 * index, offset, 0, size, flags)
        return 0


Fake = Callable[..., None]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    def use(*args: Any) -> None:
        monkeypatch.setattr(fiemap, "fcntl", FakeFcntl(*args))

    return use


def test_the_layout_is_the_kernels() -> None:
    assert (fiemap._HEADER.size, fiemap._EXTENT.size) == (32, 56)


UNWRITTEN = fiemap.EXTENT_UNWRITTEN


@pytest.mark.parametrize(
    "flags",
    [
        0,
        UNWRITTEN | fiemap.EXTENT_SHARED,
        UNWRITTEN | fiemap.EXTENT_DELALLOC,
        UNWRITTEN | fiemap.EXTENT_UNKNOWN,
    ],
)
def test_only_space_of_its_own_counts(fake: Fake, flags: int) -> None:
    fake([(0, 4096, flags), (4096, 4096, UNWRITTEN), (8192, 4096, flags)])
    assert list(unwritten_runs(0, 0, 1 << 20)) == [(4096, 8192)]


def test_a_run_may_lie_in_several_places(fake: Fake) -> None:
    fake([(at, 4096, UNWRITTEN) for at in (0, 4096, 8192, 16384, 20480)])
    assert list(unwritten_runs(0, 0, 1 << 20)) == [(0, 12288), (16384, 24576)]


def test_nothing_follows_the_last_extent(fake: Fake) -> None:
    fake([(0, 4096, UNWRITTEN | fiemap.EXTENT_LAST), (4096, 4096, UNWRITTEN)])
    assert list(unwritten_runs(0, 512, 1 << 20)) == [(512, 4096)]


@pytest.mark.parametrize(
    "extents",
    [[(4096, 0, UNWRITTEN)], [(0, 512, UNWRITTEN)], [(1 << 30, 512, UNWRITTEN)]],
    ids=["empty", "before", "behind"],
)
def test_an_answer_of_no_use_ends_the_search(
    monkeypatch: pytest.MonkeyPatch, extents: list[tuple[int, int, int]]
) -> None:
    monkeypatch.setattr(fiemap, "_ask", lambda *_: extents)
    assert list(unwritten_runs(0, 4096, 1 << 20)) == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL])
def test_not_supported(fake: Fake, fd: int, tmp_path: Path, code: int) -> None:
    fake([], code)
    assert not is_supported(fd)
    assert not can_anchor(fd, tmp_path)


def test_no_such_platform(monkeypatch: pytest.MonkeyPatch, fd: int, tmp_path: Path) -> None:
    monkeypatch.setattr(fiemap, "fcntl", None)
    assert not is_supported(fd)
    assert not can_anchor(fd, tmp_path)


def test_other_failures_are_raised(fake: Fake) -> None:
    fake([], errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        list(unwritten_runs(0, 0, 4096))
    with pytest.raises(OSError, match="Input/output"):
        is_supported(0)
