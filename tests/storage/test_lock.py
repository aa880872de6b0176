import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyiscsi_target.storage import lock
from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.lock import lock_image

OPEN = """
import os, sys
from pyiscsi_target.storage.base import StorageError
from pyiscsi_target.storage.lock import lock_image
shared = sys.argv[2] == "shared"
fd = os.open(sys.argv[1], os.O_RDONLY if shared else os.O_RDWR)
try:
    lock_image(fd, sys.argv[1], shared=shared)
except StorageError as error:
    sys.exit(error.fault.name)
"""


def open_image(path: Path, *, shared: bool) -> int:
    return os.open(path, os.O_RDONLY if shared else os.O_RDWR)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    return path


@pytest.fixture(params=["descriptions", "flock"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "flock":
        monkeypatch.delattr("fcntl.F_OFD_SETLK")


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("first_shared", [True, False])
@pytest.mark.parametrize("second_shared", [True, False])
def test_readers_share_and_writers_do_not(
    image: Path, first_shared: bool, second_shared: bool
) -> None:
    first = open_image(image, shared=first_shared)
    second = open_image(image, shared=second_shared)
    lock_image(first, "first", shared=first_shared)
    if first_shared and second_shared:
        lock_image(second, "second", shared=True)
    else:
        with pytest.raises(StorageError, match="second: in use by another process") as caught:
            lock_image(second, "second", shared=second_shared)
        assert caught.value.fault is StorageFault.BUSY
    os.close(first)
    lock_image(second, "second", shared=second_shared)
    os.close(second)


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("alias", [os.symlink, os.link])
def test_every_name_of_a_file_is_locked(image: Path, alias: object) -> None:
    other = image.with_name("other.img")
    alias(image, other)  # type: ignore[operator]
    first, second = open_image(image, shared=False), open_image(other, shared=False)
    lock_image(first, "first", shared=False)
    with pytest.raises(StorageError):
        lock_image(second, "second", shared=False)
    os.close(first)
    os.close(second)


def in_another_process(image: Path, how: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", OPEN, image, how], capture_output=True, text=True, check=False
    )
    return done.stderr.strip()


def test_another_process_sees_the_lock(image: Path) -> None:
    fd = open_image(image, shared=False)
    lock_image(fd, "disk", shared=False)
    os.close(os.open(image, os.O_RDWR))  # closing another descriptor does not unlock
    assert in_another_process(image, "alone") == "BUSY"
    assert in_another_process(image, "shared") == "BUSY"
    os.close(fd)
    assert in_another_process(image, "alone") == ""


def test_readers_share_across_processes(image: Path) -> None:
    fd = open_image(image, shared=True)
    lock_image(fd, "disk", shared=True)
    assert in_another_process(image, "shared") == ""
    assert in_another_process(image, "alone") == "BUSY"
    os.close(fd)


def test_a_lock_does_not_outlive_its_process(image: Path) -> None:
    assert in_another_process(image, "alone") == ""
    fd = open_image(image, shared=False)
    lock_image(fd, "disk", shared=False)
    os.close(fd)


def test_no_locks_at_all_is_a_warning(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    fd = open_image(image, shared=False)
    lock_image(fd, "disk", shared=False)
    os.close(fd)
    assert "disk: this file system has no locks" in caplog.text


class Msvcrt:
    """Windows' module, as far as it is used."""

    LK_NBLCK = 2
    locked: set[int]

    def __init__(self) -> None:
        self.locked = set()

    def locking(self, fd: int, mode: int, length_bytes: int) -> None:
        position = os.lseek(fd, 0, os.SEEK_CUR)
        if position in self.locked:
            raise PermissionError(13, "Permission denied")
        self.locked.add(position)


def test_windows_locks_a_byte_behind_the_data(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = Msvcrt()
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "msvcrt", windows)
    monkeypatch.setattr(lock, "_WINDOWS_LOCK_BYTE", 1 << 40)
    fd = open_image(image, shared=False)
    lock_image(fd, "disk", shared=False)
    assert windows.locked == {1 << 40}
    with pytest.raises(StorageError):
        lock_image(fd, "disk", shared=False)
    lock_image(fd, "disk", shared=True)
    os.close(fd)


@pytest.mark.skipif(sys.platform != "linux", reason="QEMU locks these bytes on Linux")
def test_qemu_sees_the_lock_and_may_still_look(image: Path) -> None:
    fd = open_image(image, shared=False)
    lock_image(fd, str(image), shared=False)

    def qemu_img(*arguments: str | Path) -> int:
        try:
            return subprocess.run(
                ["qemu-img", *arguments], capture_output=True, check=False
            ).returncode
        except FileNotFoundError:
            pytest.skip("qemu-img is not installed")

    copy = image.with_name("copy.img")
    assert qemu_img("convert", "-O", "raw", image, copy) != 0
    assert qemu_img("resize", "-f", "raw", image, "1M") != 0
    assert qemu_img("convert", "-U", "-O", "raw", image, copy) == 0
    os.close(fd)
    assert qemu_img("resize", "-f", "raw", image, "1M") == 0
