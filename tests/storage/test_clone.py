"""Copies of whole files: what is in them, their holes, and what is left of a copy that failed."""

import errno
import os
from pathlib import Path

import pytest

from pyiscsi_target.storage import clone
from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.clone import allocated_bytes, clone_file

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """64 MiB with data at two places."""
    path = tmp_path / "source.img"
    with open(path, "wb") as file:
        file.truncate(64 * MIB)
        for place in (0, 40 * MIB + 4096):
            file.seek(place)
            file.write(b"data" * 3 * MIB)
    path.chmod(0o640)
    return path


def test_a_copy_has_the_data_and_the_holes(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.img"
    target.write_bytes(b"before")
    copied: list[int] = []
    clone_file(source, target, progress=copied.append)
    assert target.read_bytes() == source.read_bytes()
    assert allocated_bytes(target) == allocated_bytes(source) == 24 * MIB
    assert target.stat().st_mode == source.stat().st_mode
    assert sum(copied) in (0, 24 * MIB)  # none where the file system shares blocks
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.img", "target.img"]


def test_a_copy_that_would_be_too_long(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clone, "_share", lambda *_: False)
    with pytest.raises(StorageError, match=f"{24 * MIB} bytes would have to be copied") as refused:
        clone_file(source, tmp_path / "target.img", copy_limit_bytes=24 * MIB - 1)
    assert refused.value.fault is StorageFault.INVALID
    assert list(tmp_path.iterdir()) == [source]
    clone_file(source, tmp_path / "target.img", copy_limit_bytes=24 * MIB)


def test_files_that_share_their_blocks(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that can: nothing is copied, whatever the limit."""

    def share(source: int, target: int) -> bool:
        os.write(target, b"shared")
        return True

    monkeypatch.setattr(clone, "_share", share)
    clone_file(source, tmp_path / "target.img", copy_limit_bytes=0)
    assert (tmp_path / "target.img").read_bytes() == b"shared"


def test_a_full_disk_leaves_what_was_there(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target.img"
    target.write_bytes(b"before")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(clone, "_share", lambda *_: False)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match=r"target.img: No space left") as refused:
        clone_file(source, target)
    assert refused.value.fault is StorageFault.OUT_OF_SPACE
    assert target.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 2


def test_no_such_file(tmp_path: Path) -> None:
    for act in (
        lambda: clone_file(tmp_path / "a", tmp_path / "b"),
        lambda: allocated_bytes(tmp_path / "a"),
    ):
        with pytest.raises(StorageError) as refused:
            act()
        assert refused.value.fault is StorageFault.MISSING
    assert not list(tmp_path.iterdir())
