"""Files that are whole or not there."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.lock import lock_image
from pyiscsi_target.storage.new_file import new_file


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_it_has_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    with new_file(path, suffix=".vhd") as temporary:
        temporary.write_bytes(b"whole")
        assert temporary.suffix == ".vhd"
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert names(tmp_path) == ["disk.vhd"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_what_was_given_up(tmp_path: Path, error: type[BaseException]) -> None:
    def give_up() -> None:
        with new_file(tmp_path / "disk.vhd") as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        give_up()
    assert names(tmp_path) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    path.write_bytes(b"old")
    with pytest.raises(StorageError, match="is there already") as caught, new_file(path):
        pytest.fail("it began")
    assert caught.value.fault is StorageFault.INVALID
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["disk.vhd"]


def test_nothing_that_came_meanwhile_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    with pytest.raises(StorageError, match="is there already"), new_file(path):
        path.write_bytes(b"faster")
    assert path.read_bytes() == b"faster"
    assert names(tmp_path) == ["disk.vhd"]


def test_with_overwrite_the_old_one_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    path.write_bytes(b"old")
    with new_file(path, overwrite=True) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(ValueError, match="no"), new_file(path, overwrite=True):
        raise ValueError("no")
    assert path.read_bytes() == b"new"


def test_what_is_in_use_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    path.touch()
    fd = os.open(path, os.O_RDWR)
    lock_image(fd, str(path), shared=False)
    try:
        with pytest.raises(StorageError) as caught, new_file(path, overwrite=True):
            pytest.fail("it began")
    finally:
        os.close(fd)
    assert caught.value.fault is StorageFault.BUSY


def test_only_files_are_replaced(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a file"), new_file(tmp_path, overwrite=True):
        pytest.fail("it began")


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught, new_file(tmp_path / "none" / "disk.vhd"):
        pytest.fail("it began")
    assert caught.value.fault is StorageFault.MISSING


def test_where_there_are_no_links_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with new_file(tmp_path / "disk.vhd") as temporary:
        temporary.write_bytes(b"whole")
    assert names(tmp_path) == ["disk.vhd"]


def test_where_no_file_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the file that was asked for, not a temporary one."""

    def refuse(suffix: str, prefix: str, directory: Path) -> None:
        name = f"{directory}/{prefix}random{suffix}"
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    path = tmp_path / "disk.vhd"
    with pytest.raises(StorageError) as refused, new_file(path):
        pass
    assert str(refused.value) == f"{path}: Permission denied"
