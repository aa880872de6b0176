import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiscsi_target.storage import fiemap, holes
from pyiscsi_target.storage.base import Extent, Provisioning
from pyiscsi_target.storage.holes import (
    PUNCH,
    RESERVE,
    ZERO,
    allocate_mode,
    can_anchor,
    can_punch,
    data_runs,
    extents,
    writes_elsewhere,
)
from tests.support.small_file_system import small_file_system

SIZE_BYTES = 1 << 20
MAPPED, DEALLOCATED, ANCHORED = (
    Provisioning.MAPPED,
    Provisioning.DEALLOCATED,
    Provisioning.ANCHORED,
)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "disk.img", os.O_RDWR | os.O_CREAT)
    os.pwrite(opened, b"a" * SIZE_BYTES, 0)
    yield opened
    os.close(opened)


class Fallocate:
    """Fails with each of `codes` in turn, then succeeds."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)
        self.calls: list[tuple[int, int, int]] = []

    def __call__(self, fd: int, mode: int, offset_bytes: int, length_bytes: int) -> int:
        self.calls.append((mode, offset_bytes, length_bytes))
        if not self.codes:
            return 0
        ctypes.set_errno(self.codes.pop(0))
        return -1


def use(monkeypatch: pytest.MonkeyPatch, *codes: int) -> Fallocate:
    made = Fallocate(*codes)
    monkeypatch.setattr(holes, "fallocate", made)
    return made


def test_modes_keep_the_size(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = use(monkeypatch)
    assert allocate_mode(fd, PUNCH, 512, 1024)
    assert allocate_mode(fd, ZERO, 512, 1024)
    assert seen.calls == [(0x03, 512, 1024), (0x11, 512, 1024)]


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_not_supported(fd: int, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    use(monkeypatch, code)
    assert not allocate_mode(fd, PUNCH, 0, 512)


def test_no_such_function(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holes, "fallocate", None)
    assert not allocate_mode(fd, PUNCH, 0, 512)
    assert not can_punch(fd, SIZE_BYTES)


def test_interrupted_calls_are_made_again(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = use(monkeypatch, errno.EINTR, errno.EINTR)
    assert allocate_mode(fd, PUNCH, 0, 512)
    assert len(seen.calls) == 3


def test_real_failures_are_raised(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        allocate_mode(fd, ZERO, 0, 512)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("size_bytes", [SIZE_BYTES, SIZE_BYTES - 512])
def test_probing_is_harmless(fd: int, size_bytes: int) -> None:
    os.ftruncate(fd, size_bytes)
    can_punch(fd, size_bytes)
    assert os.fstat(fd).st_size == size_bytes
    assert os.pread(fd, size_bytes, 0) == b"a" * size_bytes


def test_a_file_open_for_reading_is_taken_to_take_holes(tmp_path: Path, fd: int) -> None:
    reading = os.open(tmp_path / "disk.img", os.O_RDONLY)
    assert can_punch(reading, SIZE_BYTES) is (holes.fallocate is not None)
    os.close(reading)


def test_a_file_that_cannot_be_asked_for_another_reason_takes_none(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, errno.EPERM)
    assert not can_punch(fd, SIZE_BYTES)


def test_no_data_behind_the_last(fd: int) -> None:
    os.ftruncate(fd, 0)
    os.ftruncate(fd, SIZE_BYTES)
    assert list(data_runs(fd, 0, SIZE_BYTES)) in ([], [(0, SIZE_BYTES)])


def test_all_is_data_where_nobody_can_tell(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def lseek(fd: int, position: int, whence: int) -> int:
        raise OSError(errno.EINVAL, "what is SEEK_DATA?")

    monkeypatch.setattr(os, "lseek", lseek)
    assert list(data_runs(fd, 512, 4096)) == [(512, 4096)]


def test_other_failures_are_raised(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def lseek(fd: int, position: int, whence: int) -> int:
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(os, "lseek", lseek)
    with pytest.raises(OSError, match="bad sector"):
        list(data_runs(fd, 512, 4096))


# Anchoring


def test_extents_tell_space_without_data(fd: int, tmp_path: Path) -> None:
    if not can_anchor(fd, tmp_path):
        pytest.skip("the file system of the temporary directory cannot anchor")
    os.ftruncate(fd, 0)
    os.ftruncate(fd, SIZE_BYTES)
    os.pwrite(fd, b"d" * 65536, 0)
    allocate_mode(fd, ZERO, 131072, 65536)
    assert list(extents(fd, 0, SIZE_BYTES, anchors=True)) == [
        Extent(0, 65536, MAPPED),
        Extent(65536, 65536, DEALLOCATED),
        Extent(131072, 65536, ANCHORED),
        Extent(196608, SIZE_BYTES - 196608, DEALLOCATED),
    ]
    os.pwrite(fd, b"d" * 65536, 131072)  # the cache alone has it
    assert list(extents(fd, 131072, 196608, anchors=True)) == [Extent(131072, 65536, MAPPED)]
    assert list(extents(fd, 65536, SIZE_BYTES, anchors=False)) == [
        Extent(65536, 65536, DEALLOCATED),
        Extent(131072, 65536, MAPPED),
        Extent(196608, SIZE_BYTES - 196608, DEALLOCATED),
    ]


def test_reserving_changes_nothing_that_is_read(fd: int, tmp_path: Path) -> None:
    if not can_anchor(fd, tmp_path):
        pytest.skip("the file system of the temporary directory cannot anchor")
    allocate_mode(fd, PUNCH, 65536, 65536)
    assert allocate_mode(fd, RESERVE, 0, SIZE_BYTES)
    assert os.pread(fd, SIZE_BYTES, 0) == b"a" * 65536 + bytes(65536) + b"a" * (SIZE_BYTES - 131072)
    assert os.fstat(fd).st_size == SIZE_BYTES


def test_trying_to_anchor_leaves_nothing_behind(fd: int, tmp_path: Path) -> None:
    before = os.listdir(tmp_path), os.fstat(fd).st_mtime_ns
    can_anchor(fd, tmp_path)
    assert (os.listdir(tmp_path), os.fstat(fd).st_mtime_ns) == before


def tells(monkeypatch: pytest.MonkeyPatch, *runs: tuple[int, int]) -> None:
    monkeypatch.setattr(fiemap, "is_supported", lambda fd: True)
    monkeypatch.setattr(fiemap, "unwritten_runs", lambda *_: iter(runs))


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="there are no files without a name")
@pytest.mark.parametrize(
    ("codes", "runs", "anchors"),
    [
        ((), [(0, 65536)], True),
        ((), [], False),
        ((), [(0, 4096)], False),
        ((errno.EOPNOTSUPP,), [(0, 65536)], False),
        ((errno.ENOSPC,), [], True),
        ((errno.EDQUOT,), [], True),
        ((errno.EIO,), [], False),
    ],
    ids=["both", "gives space back", "in part", "writes zeroes", "full", "quota", "broken"],
)
def test_what_a_file_system_must_do_to_anchor(
    fd: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    codes: tuple[int, ...],
    runs: list[tuple[int, int]],
    anchors: bool,
) -> None:
    use(monkeypatch, *codes)
    tells(monkeypatch, *runs)
    assert can_anchor(fd, tmp_path) is anchors


def test_nothing_anchors_where_it_cannot_be_tried(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tells(monkeypatch, (0, 65536))
    assert not can_anchor(fd, tmp_path / "missing")
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    assert not can_anchor(fd, tmp_path)


def test_a_file_system_that_writes_elsewhere(fd: int, tmp_path: Path) -> None:
    with small_file_system(tmp_path, "btrfs") as directory, (directory / "x").open("wb") as file:
        assert writes_elsewhere(file.fileno())
    with small_file_system(tmp_path, "ext4") as directory, (directory / "x").open("wb") as file:
        assert not writes_elsewhere(file.fileno())


def test_nobody_knows_where_it_writes(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holes, "_c_library", lambda: None)
    assert not writes_elsewhere(fd)
