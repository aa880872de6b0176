"""Snapshots: their names, what they keep, and what a failure leaves behind."""

import asyncio
import errno
import os
import time
from pathlib import Path

import pytest

from pyiscsi_target.storage import chain, clone, snapshots
from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.create import NewImage, create_image, format_of
from pyiscsi_target.storage.create_child import create_child
from pyiscsi_target.storage.open import open_image
from pyiscsi_target.storage.snapshot_deletion import delete_snapshot
from pyiscsi_target.storage.snapshots import (
    list_snapshots,
    restore_snapshot,
    snapshot_path,
    take_snapshot,
)
from pyiscsi_target.storage.vhdx_create import Kind

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "data.img"
    path.write_bytes(b"first" + bytes(MIB))
    path.chmod(0o640)
    return path


def write(image: Path, data: bytes) -> None:
    with open(image, "r+b") as file:
        file.write(data)


def names(image: Path) -> list[str]:
    return [snapshot.name for snapshot in list_snapshots(image)]


def test_a_snapshot_keeps_what_there_was(image: Path) -> None:
    taken = take_snapshot(image, "one")
    assert taken.path == image.with_name("data@one.img")
    write(image, b"later")
    take_snapshot(image, "two")
    write(image, b"third")
    assert names(image) == ["one", "two"]
    for name, content in (("one", b"first"), ("two", b"later"), ("one", b"first")):
        restore_snapshot(image, name)
        assert image.read_bytes() == content + bytes(MIB)
        write(image, b"again")
    assert names(image) == ["one", "two"]
    assert image.stat().st_mode & 0o777 == 0o640
    assert taken.path.stat().st_mode & 0o777 == 0o440


def test_a_name_is_used_once(image: Path) -> None:
    take_snapshot(image, "one")
    write(image, b"later")
    with pytest.raises(StorageError, match="there is such a snapshot already") as refused:
        take_snapshot(image, "one")
    assert refused.value.fault is StorageFault.INVALID
    restore_snapshot(image, "one")
    assert image.read_bytes().startswith(b"first")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".", "-x", "a b", "é", "x" * 65, "a\n"])
def test_what_cannot_be_a_name(image: Path, name: str) -> None:
    with pytest.raises(StorageError, match="cannot name a snapshot"):
        take_snapshot(image, name)
    assert list(image.parent.iterdir()) == [image]


def test_a_snapshot_that_is_not_there(image: Path) -> None:
    take_snapshot(image, "one")
    with pytest.raises(
        StorageError, match=r"no such snapshot of data.img; there are: one"
    ) as error:
        restore_snapshot(image, "two")
    assert error.value.fault is StorageFault.MISSING
    assert image.read_bytes().startswith(b"first")


def test_a_snapshot_is_deleted(image: Path) -> None:
    for name in ("one", "two"):
        take_snapshot(image, name)
    delete_snapshot(image, "one")
    assert names(image) == ["two"]
    assert image.read_bytes().startswith(b"first")
    with pytest.raises(StorageError, match="there are: two"):
        delete_snapshot(image, "one")


def test_other_files_are_no_snapshots(image: Path) -> None:
    for name in ("data@.img", "data@a b.img", "data@x.img.tmp", "other@x.img", "data.img.1"):
        (image.parent / name).touch()
    assert names(image) == []
    assert names(image.with_name("else.img")) == []


def test_too_much_to_copy(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "COPY_LIMIT_BYTES", 4096)
    monkeypatch.setattr(clone, "_share", lambda *_: False)
    with pytest.raises(StorageError, match="would have to be copied"):
        take_snapshot(image, "one")
    assert list(image.parent.iterdir()) == [image]


def test_no_such_image(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as error:
        take_snapshot(tmp_path / "data.img", "one")
    assert error.value.fault is StorageFault.MISSING
    assert not list(tmp_path.iterdir())
    with pytest.raises(StorageError):
        snapshot_path(tmp_path / "data.img", "")


# Formats that know differencing


@pytest.fixture(params=[".vhd", ".vhdx"])
def growing(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A dynamic image of 64 MiB."""
    path = tmp_path / f"data{request.param}"
    create_image(path, NewImage(format_of(path), Kind.DYNAMIC, 64 * MIB))
    return path


async def change(image: Path, data: bytes, offset_bytes: int = 0) -> None:
    disk = open_image(image, read_only=False)
    await disk.write(offset_bytes, [data.ljust(512, b"\0")])
    await disk.close()


async def content(image: Path, offset_bytes: int = 0) -> bytes:
    disk = open_image(image, read_only=True)
    into = bytearray(512)
    await disk.read(offset_bytes, memoryview(into))
    await disk.close()
    return bytes(into).rstrip(b"\0")


async def test_a_chain_of_snapshots(growing: Path) -> None:
    """Each is the parent of what came after it; going back starts another branch."""
    await change(growing, b"first")
    await change(growing, b"elsewhere", 40 * MIB)
    take_snapshot(growing, "one")
    await change(growing, b"second")
    take_snapshot(growing, "two")
    await change(growing, b"third", 8 * MIB)
    assert [await content(growing, at) for at in (0, 8 * MIB, 40 * MIB)] == [
        b"second",
        b"third",
        b"elsewhere",
    ]
    restore_snapshot(growing, "one")
    assert [await content(growing, at) for at in (0, 8 * MIB)] == [b"first", b""]
    await change(growing, b"branch")
    restore_snapshot(growing, "two")
    assert [await content(growing, at) for at in (0, 8 * MIB)] == [b"second", b""]
    assert sorted(names(growing)) == ["one", "two"]
    assert len(list(growing.parent.iterdir())) == 3


async def test_the_image_takes_the_place_of_its_snapshot(growing: Path) -> None:
    os.chmod(growing, 0o640)
    await change(growing, b"first")
    await change(growing, b"elsewhere", 40 * MIB)
    for name in ("one", "two"):
        take_snapshot(growing, name)
        await change(growing, name.encode(), 8 * MIB)
    for name in ("two", "one"):
        await asyncio.to_thread(delete_snapshot, growing, name)
        places = (0, 8 * MIB, 40 * MIB)
        assert [await content(growing, at) for at in places] == [b"first", b"two", b"elsewhere"]
        await change(growing, b"again", 16 * MIB)
    assert list(growing.parent.iterdir()) == [growing]
    assert os.stat(growing).st_mode & 0o777 == 0o640
    assert await content(growing, 16 * MIB) == b"again"


def test_where_no_snapshot_can_be_put(growing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the file that could not be made, not the image."""

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), source, None, target)

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError) as refused:
        take_snapshot(growing, "one")
    assert str(refused.value) == f"{snapshot_path(growing, 'one')}: Permission denied"


async def test_a_child_that_cannot_be_made(growing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image is what and where it was."""
    await change(growing, b"first")

    def fail(child: Path, parent: Path) -> None:
        raise StorageError(StorageFault.OUT_OF_SPACE, "full")

    with monkeypatch.context() as broken:
        broken.setattr(snapshots, "create_child", fail)
        with pytest.raises(StorageError, match="full"):
            take_snapshot(growing, "one")
    assert list(growing.parent.iterdir()) == [growing]
    await change(growing, b"second")
    take_snapshot(growing, "one")
    await change(growing, b"third")
    restore_snapshot(growing, "one")
    assert await content(growing) == b"second"


async def test_a_crash_before_the_child_was_there(growing: Path) -> None:
    """The image has two names then, and the second is no snapshot: it would change."""
    await change(growing, b"first")
    os.link(growing, snapshot_path(growing, "one"))
    growing.with_name(f".{growing.name}.tmp{growing.suffix}").touch()
    assert names(growing) == []
    take_snapshot(growing, "one")
    await change(growing, b"second")
    restore_snapshot(growing, "one")
    assert await content(growing) == b"first"
    assert len(list(growing.parent.iterdir())) == 2


async def test_what_a_crash_left_never_passes_for_a_snapshot(growing: Path) -> None:
    """A second name of the image would, as soon as another file takes the image's place."""
    await change(growing, b"first")
    take_snapshot(growing, "zero")
    unfinished = snapshot_path(growing, "one")
    os.link(growing, unfinished)
    await change(growing, b"second")
    take_snapshot(growing, "two")
    assert names(growing) == ["zero", "two"]
    for step in (
        lambda: restore_snapshot(growing, "two"),
        lambda: delete_snapshot(growing, "two"),
    ):
        os.link(growing, unfinished)
        await asyncio.to_thread(step)
        assert not unfinished.exists()
    assert await content(growing) == b"second"
    assert names(growing) == ["zero"]


async def test_the_folder_cannot_be_synced(growing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot is there, then, and nothing may take it from the child that is made of it."""
    await change(growing, b"first")

    def fail(directory: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(snapshots, "sync_directory", fail)
        with pytest.raises(StorageError, match="Input/output error"):
            take_snapshot(growing, "one")
    assert await content(growing) == b"first"
    await change(growing, b"second")
    restore_snapshot(growing, "one")
    assert await content(growing) == b"first"


async def test_a_chain_ends_before_it_is_too_long(growing: Path) -> None:
    await change(growing, b"first")
    for number in range(1, chain.MAX_DEPTH):
        take_snapshot(growing, f"s{number}")
    for _ in range(2):
        with pytest.raises(StorageError, match="more than 64 files in the chain of parents"):
            take_snapshot(growing, "one-more")
    assert len(list(growing.parent.iterdir())) == chain.MAX_DEPTH
    assert await content(growing) == b"first"
    await asyncio.to_thread(delete_snapshot, growing, "s5")
    take_snapshot(growing, "one-more")
    assert await content(growing) == b"first"


async def test_a_name_that_means_a_folder_to_others(tmp_path: Path) -> None:
    """Parents' paths are spelt as Windows does: the child would not find its parent again."""
    image = tmp_path / "a\\b.vhd"
    create_image(image, NewImage(format_of(image), Kind.DYNAMIC, MIB))
    await change(image, b"first")
    with pytest.raises(StorageError, match="is missing"):
        take_snapshot(image, "one")
    assert await content(image) == b"first"
    assert os.listdir(tmp_path) == [image.name]


@pytest.mark.parametrize("suffix", [".img", ".vhd", ".vhdx"])
async def test_a_file_of_such_a_name_need_not_be_a_snapshot(tmp_path: Path, suffix: str) -> None:
    """Somebody's own disk, which is never overwritten, restored from, or deleted."""
    image, other = tmp_path / f"data{suffix}", tmp_path / f"data@old{suffix}"
    for path, text in ((image, b"data"), (other, b"other")):
        create_image(path, NewImage(format_of(path), Kind.DYNAMIC, 4 * MIB))
        await change(path, text)
    assert names(image) == []
    for action in (restore_snapshot, delete_snapshot):
        with pytest.raises(StorageError, match="no such snapshot of"):
            await asyncio.to_thread(action, image, "old")
    with pytest.raises(StorageError, match="is there already, and is no snapshot"):
        take_snapshot(image, "old")
    assert [await content(path) for path in (image, other)] == [b"data", b"other"]
    take_snapshot(image, "new")
    assert names(image) == ["new"]


async def test_a_crash_before_the_snapshot_was_protected(growing: Path) -> None:
    await change(growing, b"first")
    snapshot = take_snapshot(growing, "one")
    os.chmod(snapshot.path, 0o600)
    assert names(growing) == ["one"]
    await change(growing, b"second")
    restore_snapshot(growing, "one")
    assert await content(growing) == b"first"


def test_when_it_was_taken(growing: Path) -> None:
    """Not when the disk was last written."""
    os.utime(growing, (1e9, 1e9))
    before_s = time.time()
    snapshot = take_snapshot(growing, "one")
    assert before_s - 2 <= snapshot.taken_s <= time.time() + 2


async def test_nobody_takes_the_snapshot_away_that_is_being_taken(
    growing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process would take the second name of the image for one that a crash left."""
    await change(growing, b"first")
    take_snapshot(growing, "zero")
    await change(growing, b"second")

    def meanwhile(child: Path, parent: Path) -> None:
        with pytest.raises(StorageError, match="in use by another process"):
            delete_snapshot(growing, "zero")
        with pytest.raises(StorageError, match="in use by another process"):
            open_image(growing, read_only=False)
        create_child(child, parent)

    monkeypatch.setattr(snapshots, "create_child", meanwhile)
    await asyncio.to_thread(take_snapshot, growing, "one")
    assert names(growing) == ["zero", "one"]
    assert await content(growing) == b"second"
