"""Every format, over real files: whatever is done to a disk, it holds what a bytearray does.

Random steps: reads, writes (one after the other and together), zeroing, changes of the size,
snapshots, opening again after a clean end and after a killed process.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pyiscsi_target.storage.base import BackingStore, Provisioning, StorageError, StorageFault
from pyiscsi_target.storage.check import check_image
from pyiscsi_target.storage.create import NewImage, create_image, format_of
from pyiscsi_target.storage.create_child import create_child
from pyiscsi_target.storage.finding import Remedy
from pyiscsi_target.storage.open import open_image
from pyiscsi_target.storage.snapshot_deletion import delete_snapshot
from pyiscsi_target.storage.snapshots import restore_snapshot, snapshot_path, take_snapshot
from pyiscsi_target.storage.vhdx_create import Kind
from tests.support.images import KIB, MIB

UNIT = 4096  # the larger sector
SIZE = 2 * MIB + 3 * 64 * KIB
SIZE_MAX = 5 * MIB
NAMES = ("one", "two", "three")


@dataclass(frozen=True)
class Format:
    """A kind of image, and what creates it. `parent_size`: of a differencing disk's parent."""

    name: str
    file: str
    kind: Kind
    block_bytes: int = 0
    sector_bytes: int = 0
    parent_size: int = 0

    def create(self, directory: Path) -> bytearray:
        """The image in the directory, and what it holds."""
        image = directory / self.file
        content = bytearray(SIZE)
        if self.parent_size:
            parent = directory / f"parent{image.suffix}"
            create_image(parent, self._new(self.parent_size, Kind.DYNAMIC))
            content[:] = asyncio.run(_fill(parent, self.parent_size))[:SIZE].ljust(SIZE, b"\0")
            create_child(image, parent, size_bytes=SIZE)
        else:
            create_image(image, self._new(SIZE, self.kind))
        return content

    def _new(self, size_bytes: int, kind: Kind) -> NewImage:
        file_format = format_of(Path(self.file))
        return NewImage(file_format, kind, size_bytes, self.block_bytes, self.sector_bytes)


async def _fill(parent: Path, size_bytes: int) -> bytes:
    """Every other stretch of 192 KiB holds something."""
    content = bytearray(size_bytes)
    disk = open_image(parent, read_only=False)
    step = 192 * KIB
    for start in range(0, size_bytes, 2 * step):
        data = _data(0, start, min(step, size_bytes - start))
        content[start : start + len(data)] = data
        await disk.write(start, (data,))
    await disk.close()
    return bytes(content)


def _data(stamp: int, offset_bytes: int, length_bytes: int) -> bytes:
    """Sectors that say where they belong and of which step they are."""
    return b"".join(
        (stamp.to_bytes(4, "little") + at.to_bytes(8, "little")).ljust(512, b".")
        for at in range(offset_bytes, offset_bytes + length_bytes, 512)
    )


FORMATS = (
    Format("raw", "disk.img", Kind.DYNAMIC),
    Format("fixed VHD", "disk.vhd", Kind.FIXED),
    Format("dynamic VHD", "disk.vhd", Kind.DYNAMIC, 512 * KIB),
    Format("differencing VHD", "disk.vhd", Kind.DIFFERENCING, 512 * KIB, parent_size=SIZE),
    Format("child of a smaller VHD", "disk.vhd", Kind.DIFFERENCING, 512 * KIB, 0, MIB),
    Format("child of a larger VHD", "disk.vhd", Kind.DIFFERENCING, 512 * KIB, 0, SIZE_MAX),
    Format("fixed VHDX", "disk.vhdx", Kind.FIXED, MIB),
    Format("dynamic VHDX", "disk.vhdx", Kind.DYNAMIC, MIB),
    Format("dynamic VHDX, 4 KiB sectors", "disk.vhdx", Kind.DYNAMIC, MIB, 4096),
    Format("differencing VHDX", "disk.vhdx", Kind.DIFFERENCING, MIB, parent_size=SIZE),
    Format("child of a larger VHDX", "disk.vhdx", Kind.DIFFERENCING, MIB, 0, SIZE_MAX),
)

_units = st.integers(0, SIZE_MAX // UNIT - 1)
_lengths = st.one_of(st.integers(1, 4), st.sampled_from([16, 128, 256, 300]))
_ranges = st.tuples(_units, _lengths)
_sizes = st.one_of(
    st.integers(1, SIZE_MAX // MIB).map(lambda mib: mib * MIB),
    st.integers(64, SIZE_MAX // UNIT).map(lambda units: units * UNIT),
)
_changes = st.sampled_from(["write", "write", "durable", "zero", "deallocate", "anchor"])


class ImageMachine(RuleBasedStateMachine):
    """One image, the model of what it holds, and models of its snapshots."""

    format: ClassVar[Format]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = Path(tempfile.mkdtemp(prefix="image-model-"))
        self.disk: BackingStore | None = None
        self.content = bytearray()
        self.snapshots: dict[str, bytes] = {}
        self.restored = False
        self.stamp = 0

    @property
    def image(self) -> Path:
        return self.directory / self.format.file

    @property
    def store(self) -> BackingStore:
        assert self.disk is not None
        return self.disk

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        self.runner.run(work)

    def open(self) -> None:
        self.disk = open_image(self.image, read_only=False)

    def close(self) -> None:
        self.do(self.store.close())

    def allowed(self, act: Callable[[], object]) -> bool:
        """Do it; False where it is refused, as it may be."""
        fault = None
        try:
            act()
        except StorageError as error:
            fault = error.fault
        assert fault in (None, StorageFault.INVALID)
        return fault is None

    def within(self, place: tuple[int, int]) -> tuple[int, int]:
        """The start and length of a range of the disk as it is now."""
        start, length = place[0] * UNIT % len(self.content), place[1] * UNIT
        return start, min(length, len(self.content) - start)

    @initialize()
    def create(self) -> None:
        self.content = self.format.create(self.directory)
        self.open()

    @rule(place=_ranges)
    def read(self, place: tuple[int, int]) -> None:
        start, length = self.within(place)
        self.do(self._compare(start, length))

    async def _compare(self, start: int, length: int) -> None:
        into = memoryview(bytearray(length))
        if not self.store.read_now(start, into):
            await self.store.read(start, into)
        if into != self.content[start : start + length]:
            wrong = [
                at
                for at in range(0, length, 512)
                if into[at : at + 512] != self.content[start + at : start + at + 512]
            ]
            raise AssertionError(f"other bytes in sectors at {[start + at for at in wrong[:8]]}")

    @rule(change=_changes, place=_ranges)
    def change(self, change: str, place: tuple[int, int]) -> None:
        self.do(self._change(change, *self.within(place)))

    @rule(changes=st.lists(st.tuples(_changes, _ranges), min_size=2, max_size=8))
    def changes_together(self, changes: list[tuple[str, tuple[int, int]]]) -> None:
        """At one time, none in the range of another."""

        async def together() -> None:
            taken = bytearray(len(self.content) // UNIT)
            works = []
            for change, place in changes:
                start, length = self.within(place)
                units = slice(start // UNIT, (start + length) // UNIT)
                if not any(taken[units]):
                    taken[units] = b"\1" * len(taken[units])
                    works.append(self._change(change, start, length))
            await asyncio.gather(*works)

        self.do(together())

    async def _change(self, change: str, start: int, length: int) -> None:
        self.stamp += 1
        zeroing = {
            "zero": self.store.write_zeroes,
            "deallocate": self.store.deallocate,
            "anchor": self.store.anchor,
        }
        if zero := zeroing.get(change):
            await zero(start, length)
            self.content[start : start + length] = bytes(length)
            return
        data = _data(self.stamp, start, length)
        if change == "durable":
            await self.store.write(start, (data[:512], data[512:]), durable=True)
        elif not self.store.write_now(start, (data,)):
            await self.store.write(start, (data,))
        self.content[start : start + length] = data

    @rule(place=_ranges)
    def look(self, place: tuple[int, int]) -> None:
        """What is not mapped is zeroes."""
        self.do(self._look(*self.within(place)))

    async def _look(self, start: int, length: int) -> None:
        position, end = start, start + length
        while position < end:
            for extent in await self.store.extents(position, end - position, 3):
                assert extent.offset_bytes == position
                position += extent.length_bytes
                if extent.state is not Provisioning.MAPPED:
                    assert not any(self.content[extent.offset_bytes : position])
        assert position == end

    @rule()
    def flush(self) -> None:
        self.do(self.store.flush())

    @rule(size_bytes=_sizes)
    def resize(self, size_bytes: int) -> None:
        """Growing always goes; shrinking only where nothing is lost."""
        before = len(self.content)
        if not self.allowed(lambda: self.do(self.store.resize(size_bytes))):
            assert size_bytes < before
            assert self.store.size_bytes == before
            return
        assert self.store.size_bytes == size_bytes
        assert not any(self.content[size_bytes:])
        self.content[size_bytes:] = bytes(max(0, size_bytes - before))

    @rule(mib=st.integers(1, SIZE_MAX // MIB))
    def empty_and_shrink(self, mib: int) -> None:
        """The end of a disk that was given back can be cut off, unless a parent is below it."""
        size_bytes, before = mib * MIB, len(self.content)
        if self.format.kind is not Kind.DYNAMIC or size_bytes >= before or self.snapshots:
            return
        self.do(self._change("deallocate", size_bytes, before - size_bytes))
        self.resize(size_bytes)
        assert len(self.content) == size_bytes

    @rule()
    def reopen(self) -> None:
        self.close()
        self.check()
        self.open()

    @rule()
    def kill(self) -> None:
        """What files hold when a process is killed is what they hold now."""
        copy = Path(tempfile.mkdtemp(prefix="image-model-"))
        shutil.copytree(self.directory, copy, dirs_exist_ok=True)
        self.close()
        shutil.rmtree(self.directory)
        self.directory = copy
        self.check()
        self.open()

    def check(self) -> None:
        """There may be something to repair, or to compact, but no damage."""
        found = self.runner.run(check_image(self.image))
        assert [finding for finding in found if finding.remedy is Remedy.NONE] == []

    @precondition(lambda self: len(self.snapshots) < len(NAMES))
    @rule()
    def take_snapshot(self) -> None:
        name = next(name for name in NAMES if name not in self.snapshots)
        self.close()
        take_snapshot(self.image, name)
        self.open()
        self.snapshots[name] = bytes(self.content)

    @precondition(lambda self: self.snapshots)
    @rule(choice=st.integers(0, 2))
    def restore_snapshot(self, choice: int) -> None:
        name = sorted(self.snapshots)[choice % len(self.snapshots)]
        self.close()
        restore_snapshot(self.image, name)
        self.restored = True
        self.open()
        self.content = bytearray(self.snapshots[name])

    @precondition(lambda self: self.snapshots)
    @rule(choice=st.integers(0, 2))
    def delete_snapshot(self, choice: int) -> None:
        """Unless several others are made of it. Those that are left hold what they did."""
        name = sorted(self.snapshots)[choice % len(self.snapshots)]
        self.close()
        if self.allowed(lambda: delete_snapshot(self.image, name)):
            del self.snapshots[name]
        else:
            assert self.image.suffix != ".img"
            assert self.restored
            assert len(self.snapshots) > 1
        for left, content in self.snapshots.items():
            self.do(self._compare_snapshot(left, content))
        self.open()

    async def _compare_snapshot(self, name: str, content: bytes) -> None:
        disk = open_image(snapshot_path(self.image, name), read_only=True)
        into = memoryview(bytearray(disk.size_bytes))
        await disk.read(0, into)
        await disk.close()
        assert into == content, name

    @invariant()
    def holds_what_it_must(self) -> None:
        if self.disk is not None:
            assert self.store.size_bytes == len(self.content)
            self.do(self._compare(0, len(self.content)))

    def teardown(self) -> None:
        try:
            if self.disk is not None:
                self.close()
                self.open()
                self.holds_what_it_must()
                self.close()
        finally:
            self.runner.close()
            shutil.rmtree(self.directory)


@pytest.mark.parametrize("image_format", FORMATS, ids=lambda image_format: image_format.name)
def test_any_steps(image_format: Format) -> None:
    machine = type("Machine", (ImageMachine,), {"format": image_format})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
