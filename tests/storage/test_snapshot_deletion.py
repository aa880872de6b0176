"""Snapshots deleted in every order, at any place of their chain, also by a process that dies."""

import asyncio
import errno
import itertools
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pyiscsi_target.storage import merge, snapshot_deletion
from pyiscsi_target.storage.base import BackingStore, StorageError, StorageFault
from pyiscsi_target.storage.check import check_image
from pyiscsi_target.storage.create import NewImage, create_image, format_of
from pyiscsi_target.storage.create_child import create_child
from pyiscsi_target.storage.finding import Remedy
from pyiscsi_target.storage.open import open_image
from pyiscsi_target.storage.snapshot_deletion import delete_snapshot
from pyiscsi_target.storage.snapshots import (
    deletion_mark,
    list_snapshots,
    restore_snapshot,
    snapshot_path,
    take_snapshot,
)
from pyiscsi_target.storage.vhdx_create import Kind
from tests.support.images import KIB, MIB
from tests.support.killed_states import killed_states
from tests.support.libvhdi import read_disk
from tests.support.process import run_tool

SIZE = 3 * MIB + 64 * KIB
NAMES = ("one", "two", "three")


@dataclass
class Disk:
    """An image, and what it and its snapshots are to hold."""

    image: Path
    content: bytearray
    snapshots: dict[str, bytes] = field(default_factory=dict)

    def moved(self, directory: Path) -> "Disk":
        """The same in a copy of the directory."""
        return Disk(directory / self.image.name, bytearray(self.content), dict(self.snapshots))

    def resize(self, size_bytes: int) -> None:
        """What goes is emptied first."""

        async def work() -> None:
            disk = open_image(self.image, read_only=False)
            if size_bytes < disk.size_bytes:
                await disk.deallocate(size_bytes, disk.size_bytes - size_bytes)
            await disk.resize(size_bytes)
            await disk.close()

        asyncio.run(work())
        del self.content[size_bytes:]
        self.content.extend(bytes(size_bytes - len(self.content)))

    def scribble(self, seed: int) -> None:
        """Writes and holes all over the disk, and one at its end."""
        source = random.Random(seed)

        async def work() -> None:
            disk = open_image(self.image, read_only=False)
            size = len(self.content)
            starts = [source.randrange(0, size - 32 * KIB, 512) for _ in range(3)]
            for start in (*starts, size - 32 * KIB):
                data = source.randbytes(32 * KIB)
                await disk.write(start, [data])
                self.content[start : start + len(data)] = data
            hole = source.randrange(0, size - 700 * KIB, 4 * KIB)
            await disk.deallocate(hole, 700 * KIB)
            self.content[hole : hole + 700 * KIB] = bytes(700 * KIB)
            await disk.close()

        asyncio.run(work())

    def take(self, name: str) -> None:
        take_snapshot(self.image, name)
        self.snapshots[name] = bytes(self.content)

    def delete(self, name: str) -> None:
        delete_snapshot(self.image, name)
        self.snapshots.pop(name, None)

    def check(self, but: str = "") -> None:
        """Image and snapshots hold what they must, `but` one."""
        assert held(self.image) == self.content
        for name, content in self.snapshots.items():
            if name != but:
                assert held(snapshot_path(self.image, name)) == content, name

    def check_files(self) -> None:
        """Nothing else is there, and all of it is sound."""
        files = {self.image, *(snapshot_path(self.image, name) for name in self.snapshots)}
        assert set(self.image.parent.iterdir()) == files
        for path in files:
            found = asyncio.run(check_image(path))
            assert [finding for finding in found if finding.remedy is Remedy.NONE] == []


def held(path: Path) -> bytes:
    async def read() -> bytes:
        disk = open_image(path, read_only=True)
        into = bytearray(disk.size_bytes)
        await disk.read(0, memoryview(into))
        await disk.close()
        return bytes(into)

    return asyncio.run(read())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is lost here (`test_merge` does that), so nothing waits for the medium."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda descriptor: None)


@pytest.fixture(params=[".vhd", ".vhdx"])
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


KINDS = pytest.mark.parametrize("kind", [Kind.FIXED, Kind.DYNAMIC])


def new_disk(directory: Path, suffix: str, kind: Kind = Kind.DYNAMIC) -> Disk:
    directory.mkdir(exist_ok=True)
    image = directory / f"data{suffix}"
    block_bytes = 512 * KIB if suffix == ".vhd" else MIB
    if suffix == ".vhd" and kind is Kind.FIXED:
        block_bytes = 0
    create_image(image, NewImage(format_of(image), kind, SIZE, block_bytes))
    image.chmod(0o640)
    disk = Disk(image, bytearray(SIZE))
    disk.scribble(0)
    return disk


def chain(directory: Path, suffix: str, kind: Kind, sizes: Sequence[int]) -> Disk:
    """An image on three snapshots; before each of them, and at last, the disk gets a size."""
    disk = new_disk(directory, suffix, kind)
    for seed, (name, size_bytes) in enumerate(zip((*NAMES, ""), sizes, strict=True), 1):
        disk.resize(size_bytes)
        disk.scribble(seed)
        if name:
            disk.take(name)
    return disk


GROWING = (SIZE, SIZE + 512, 4 * MIB + 512, 5 * MIB)
SHRINKING = (5 * MIB, 4 * MIB + 512, 2 * MIB + 512, MIB)
MIXED = (5 * MIB, 2 * MIB + 512, SIZE, 4 * MIB + 64 * KIB)
OTHERWISE = (2 * MIB, 5 * MIB, 2 * MIB + 512, 5 * MIB + 512)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (Kind.DYNAMIC, MIXED),
        (Kind.DYNAMIC, OTHERWISE),
        (Kind.DYNAMIC, SHRINKING),
        (Kind.FIXED, MIXED),
    ],
)
def test_any_order(tmp_path: Path, suffix: str, kind: Kind, sizes: Sequence[int]) -> None:
    """The disk is written to, and changes its size, after each deletion."""
    made = chain(tmp_path / "made", suffix, kind, sizes)
    made.check()
    times = {one.name: one.taken_s for one in list_snapshots(made.image)}
    orders = list(itertools.permutations(NAMES))
    for number, order in enumerate(orders if sizes == MIXED else orders[::2]):
        directory = tmp_path / str(number)
        shutil.copytree(made.image.parent, directory)
        disk = made.moved(directory)
        for seed, name in enumerate(order):
            disk.delete(name)
            disk.check()
            disk.check_files()
            left = {one.name: one.taken_s for one in list_snapshots(disk.image)}
            assert left == {name: times[name] for name in disk.snapshots}
            disk.scribble(100 + seed)
        disk.resize(6 * MIB)
        disk.check()
        disk.check_files()
        assert disk.image.stat().st_mode & 0o777 == 0o640
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("kind", "name", "sizes"),
    [
        (Kind.DYNAMIC, "one", OTHERWISE),  # the parent grows
        (Kind.DYNAMIC, "three", MIXED),  # the image is merged, and the parent grows
        (Kind.FIXED, "one", MIXED),  # the parent shrinks
    ],
)
def test_killed_at_any_change(
    tmp_path: Path, suffix: str, kind: Kind, name: str, sizes: Sequence[int]
) -> None:
    """Everything but the snapshot is as it was; deleting it again leaves nothing behind."""
    disk = chain(tmp_path / "disk", suffix, kind, sizes)
    with killed_states(disk.image.parent, tmp_path / "states") as states:
        delete_snapshot(disk.image, name)
    assert len(states) > 20
    for number, state in enumerate(states):
        if number % 3 and number < len(states) - 12:  # many are alike in the midst of a merge
            shutil.rmtree(state)
            continue
        left = disk.moved(state)
        left.check(but=name)
        if number % 24 == 0 or number > len(states) - 8:
            restore_is_refused(left, name)
            if number % 2:  # the disk goes on meanwhile
                left.scribble(number)
                left.check(but=name)
            left.delete(name)
            left.check()
            left.check_files()
        shutil.rmtree(state)


def restore_is_refused(disk: Disk, name: str) -> None:
    """Or the snapshot is whole, because nothing has begun yet, or gone."""
    if deletion_mark(snapshot_path(disk.image, name)).exists():
        with pytest.raises(StorageError, match=r"of no use; delete it again|no such snapshot"):
            restore_snapshot(disk.image, name)


@pytest.mark.parametrize("then", [("two",), ("three", "two")])
def test_others_are_deleted_after_a_death(tmp_path: Path, suffix: str, then: Sequence[str]) -> None:
    """A deletion that was cut short need not be done again first."""
    disk = chain(tmp_path / "disk", suffix, Kind.DYNAMIC, MIXED)
    with killed_states(disk.image.parent, tmp_path / "states") as states:
        delete_snapshot(disk.image, "one")
    for state in (*states[:-8:16], *states[-8:]):
        left = disk.moved(state)
        for name in then:
            left.delete(name)
            left.check(but="one")
        left.scribble(7)
        left.delete("one")
        left.check()
        left.check_files()


def test_with_a_backing_chain_that_is_larger(tmp_path: Path, suffix: str) -> None:
    """What a snapshot below has behind the end of those above never comes to light."""
    disk = new_disk(tmp_path / "disk", suffix)
    disk.resize(5 * MIB)
    disk.scribble(1)
    disk.take("one")
    disk.resize(2 * MIB + 512)
    disk.scribble(2)
    disk.take("two")
    disk.resize(5 * MIB - 512)
    disk.take("three")
    disk.scribble(3)
    with killed_states(disk.image.parent, tmp_path / "states") as states:
        disk.delete("two")
    disk.check()
    for state in states:
        disk.moved(state).check()
        shutil.rmtree(state)
    disk.resize(6 * MIB)
    disk.check()
    for name in ("one", "three"):
        disk.delete(name)
        disk.check()
    disk.check_files()


# What other tools see


@KINDS
def test_other_tools_read_what_is_left(tmp_path: Path, suffix: str, kind: Kind) -> None:
    """libvhdi wants a child to be as large as its parent."""
    disk = chain(tmp_path / "disk", suffix, kind, (5 * MIB, 2 * MIB + 512, SIZE, SIZE))
    disk.delete("one")
    disk.delete("two")
    three = snapshot_path(disk.image, "three")
    if suffix == ".vhd":
        read = read_disk(disk.image, three)
        assert read.content == disk.content
        assert read.parent_name == three.name
    disk.delete("three")
    raw = tmp_path / "raw.img"
    driver = "vpc" if suffix == ".vhd" else "vhdx"
    if suffix == ".vhdx":
        run_tool(["qemu-img", "check", "-q", "-f", driver, disk.image])
    run_tool(["qemu-img", "convert", "-f", driver, "-O", "raw", disk.image, raw])
    assert raw.read_bytes() == disk.content


# What is refused


def test_a_snapshot_of_many_children(tmp_path: Path, suffix: str) -> None:
    disk = new_disk(tmp_path / "disk", suffix)
    for name in ("one", "two"):
        disk.take(name)
    restore_snapshot(disk.image, "one")
    message = rf"data@two{suffix}, data{suffix} are made of it, .*delete other snapshots among"
    with pytest.raises(StorageError, match=message) as refused:
        disk.delete("one")
    assert refused.value.fault is StorageFault.INVALID
    disk.check()
    disk.check_files()
    disk.delete("two")
    disk.delete("one")
    disk.check()
    disk.check_files()


def test_a_snapshot_that_another_process_reads(tmp_path: Path, suffix: str) -> None:
    """It can still be restored."""
    disk = new_disk(tmp_path / "disk", suffix)
    disk.take("one")
    reading = open_image(snapshot_path(disk.image, "one"), read_only=True)
    with pytest.raises(StorageError, match="in use by another process"):
        disk.delete("one")
    reading.close_blocking()
    disk.check_files()
    restore_snapshot(disk.image, "one")
    disk.check()


def test_a_parent_that_cannot_grow(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has changed, unless an earlier deletion was cut short."""
    disk = chain(tmp_path / "disk", suffix, Kind.DYNAMIC, GROWING)
    mark = deletion_mark(snapshot_path(disk.image, "two"))

    async def refuse(self: object, size_bytes: int) -> None:
        raise StorageError(StorageFault.OUT_OF_SPACE, "no room")

    for is_marked in (False, True):
        with monkeypatch.context() as full:
            opened = open_image(disk.image, read_only=True)
            full.setattr(type(opened), "resize", refuse)
            opened.close_blocking()
            with pytest.raises(StorageError, match="no room"):
                disk.delete("two")
        disk.snapshots["two"] = disk.snapshots.get("two", b"") or held(
            snapshot_path(disk.image, "two")
        )
        disk.check()
        assert mark.exists() == is_marked
        mark.touch()
    disk.delete("two")
    disk.check()
    disk.check_files()


def test_too_much_to_merge_while_commands_wait(tmp_path: Path, suffix: str) -> None:
    """What counts is the child's own, be it the image or a snapshot."""
    disk = chain(tmp_path / "disk", suffix, Kind.DYNAMIC, GROWING)
    for name in NAMES:
        with pytest.raises(StorageError, match="do it while no server runs"):
            delete_snapshot(disk.image, name, merge_limit_bytes=1)
    disk.check()
    disk.check_files()
    delete_snapshot(disk.image, "one", merge_limit_bytes=16 * MIB)


# Single steps


def test_a_rename_that_fails(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is merged, but the snapshot does not get the child's name: nothing is lost."""
    disk = chain(tmp_path / "disk", suffix, Kind.DYNAMIC, GROWING)

    def fail(self: Path, target: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name in ("two", "three"):
        with monkeypatch.context() as broken:
            broken.setattr(Path, "replace", fail)
            with pytest.raises(StorageError, match="Input/output error"):
                delete_snapshot(disk.image, name)
        assert snapshot_path(disk.image, name).stat().st_mode & 0o777 == 0o440
        restore_is_refused(disk, name)
        del disk.snapshots[name]
        disk.check()
    disk.scribble(9)
    disk.check()
    for name in ("two", "three"):
        disk.delete(name)
    disk.check()
    disk.check_files()


def test_children_of_the_image_itself_fit(tmp_path: Path, suffix: str) -> None:
    """As those of a golden image do when its snapshot is deleted."""
    disk = new_disk(tmp_path / "disk", suffix)
    disk.take("one")
    disk.scribble(1)
    child = tmp_path / f"child{suffix}"
    create_child(child, disk.image)
    disk.delete("one")
    assert held(child) == disk.content


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no permissions as these")
def test_a_snapshot_is_writable_while_it_is_merged(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it must be for anybody but root; and the child need not be."""
    disk = new_disk(tmp_path / "disk", suffix)
    disk.take("one")
    disk.take("two")
    modes: list[int] = []
    opened: list[tuple[str, bool]] = []

    def recorded(
        path: Path, *, read_only: bool, parent: BackingStore | None = None
    ) -> BackingStore:
        modes.append(snapshot_path(disk.image, "one").stat().st_mode & 0o777)
        opened.append((path.name, read_only))
        return open_image(path, read_only=read_only, parent=parent)

    monkeypatch.setattr(merge, "open_image", recorded)
    monkeypatch.setattr(os, "access", lambda path, mode: bool(os.stat(path).st_mode & 0o200))
    disk.delete("one")
    assert set(modes) == {0o640}
    assert opened == [(f"data@one{suffix}", False), (f"data@two{suffix}", True)]
    assert snapshot_path(disk.image, "two").stat().st_mode & 0o777 == 0o440
    disk.check()
    assert snapshot_deletion.deletable_snapshot(disk.image, "two").exists()
