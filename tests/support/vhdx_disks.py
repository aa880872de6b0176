"""VHDX disks in recorded files, and a model of what they must hold after any crash."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pyiscsi_target.storage.base import BackingStore
from pyiscsi_target.storage.chain import ParentPaths
from pyiscsi_target.storage.vhdx import VhdxDisk, open_vhdx
from pyiscsi_target.storage.vhdx_create import Kind, NewDisk, ParentLink, create_vhdx
from tests.support.images import MIB
from tests.support.recording_file import RecordingFile

SECTOR = 512


def new_file(
    size_bytes: int = 8 * MIB,
    kind: Kind = Kind.DYNAMIC,
    block_bytes: int = MIB,
    sector_bytes: int = SECTOR,
    parent: VhdxDisk | None = None,
) -> RecordingFile:
    """A file with a new disk in it; a child's parent is `parent`."""
    link = None
    if parent is not None:
        kind = Kind.DIFFERENCING
        link = ParentLink(parent.data_write_guid, ParentPaths((".\\parent.vhdx",)))
    file = RecordingFile()
    disk = NewDisk(size_bytes, kind, block_bytes, sector_bytes, parent=link, log_bytes=MIB)
    create_vhdx(file, disk)
    return file


def open_disk(file: RecordingFile, parent: BackingStore | None = None) -> VhdxDisk:
    """The disk in the file."""
    find = None if parent is None else lambda paths: parent
    return open_vhdx(file, find_parent=find)


def reopened(content: bytes, parent: BackingStore | None = None) -> VhdxDisk:
    """The disk in a file with this content."""
    return open_disk(RecordingFile(content), parent)


async def read(disk: BackingStore, offset_bytes: int, length_bytes: int) -> bytes:
    """Read as the device server does."""
    into = memoryview(bytearray(length_bytes))
    if not disk.read_now(offset_bytes, into):
        await disk.read(offset_bytes, into)
    return bytes(into)


async def write(disk: BackingStore, offset_bytes: int, *data: bytes) -> None:
    """Write as the device server does."""
    if not disk.write_now(offset_bytes, data):
        await disk.write(offset_bytes, data)


def differing(left: bytes | bytearray, right: bytes | bytearray) -> list[int]:
    """The sectors in which two equally long contents differ."""
    assert len(left) == len(right)
    found = []
    for start in range(0, len(left), 1 << 16):
        if left[start : start + (1 << 16)] != right[start : start + (1 << 16)]:
            found += [
                at // SECTOR
                for at in range(start, min(start + (1 << 16), len(left)), SECTOR)
                if left[at : at + SECTOR] != right[at : at + SECTOR]
            ]
    return found


@dataclass
class Model:
    """What a disk must hold: now, and after a loss of power."""

    content: bytearray
    durable: bytearray = field(init=False)
    later: dict[int, set[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.durable = bytearray(self.content)

    def put(self, offset_bytes: int, data: bytes, *, durable: bool = False) -> None:
        """Something was acknowledged."""
        end = offset_bytes + len(data)
        self.content[offset_bytes:end] = data
        for at in range(offset_bytes, end, SECTOR):
            sector = data[at - offset_bytes : at - offset_bytes + SECTOR]
            if durable:
                self.later.pop(at // SECTOR, None)
                self.durable[at : at + SECTOR] = sector
            else:
                self.later.setdefault(at // SECTOR, set()).add(sector)

    def flush(self) -> None:
        """Everything acknowledged is on the medium."""
        self.durable[:] = self.content
        self.later.clear()

    def wrong_after_power_loss(self, found: bytes) -> list[int]:
        """Sectors that hold neither what is durable nor anything written after it."""
        return [
            sector
            for sector in differing(found, self.durable)
            if found[sector * SECTOR : (sector + 1) * SECTOR] not in self.later.get(sector, ())
        ]


async def check_crashes(
    file: RecordingFile,
    model: Model,
    states: int,
    seed: int,
    parent: BackingStore | None = None,
) -> int:
    """Kill the process, and lose power in many ways; how many were tried.

    After more than a few changes only random ways are tried.
    """
    size = len(model.content)
    killed = reopened(file.killed(), parent)
    assert differing(await read(killed, 0, size), model.content) == []
    count = 0
    few = len(file.changes) <= 40
    for content in (file.crash_states if few else file.random_states)(states, seed):
        disk = reopened(content, parent)
        assert model.wrong_after_power_loss(await read(disk, 0, size)) == []
        count += 1
    return count


async def apply_step(
    disk: BackingStore, model: Model, step: str, offset_bytes: int, data: bytes
) -> None:
    """Do one thing to disk and model alike."""
    zeroes = bytes(len(data))
    match step:
        case "write":
            await write(disk, offset_bytes, data)
            model.put(offset_bytes, data)
        case "pieces":
            half = len(data) // 2
            await write(disk, offset_bytes, data[:half], data[half:])
            model.put(offset_bytes, data)
        case "durable":
            await disk.write(offset_bytes, [data], durable=True)
            model.put(offset_bytes, data, durable=True)
        case "zeroes":
            await write(disk, offset_bytes, zeroes)
            model.put(offset_bytes, zeroes)
        case "deallocate":
            await disk.deallocate(offset_bytes, len(data))
            model.put(offset_bytes, zeroes)
        case "write_zeroes":
            await disk.write_zeroes(offset_bytes, len(data))
            model.put(offset_bytes, zeroes)
        case "flush":
            await disk.flush()
            model.flush()


STEPS: Sequence[str] = (
    "write",
    "write",
    "pieces",
    "durable",
    "zeroes",
    "deallocate",
    "write_zeroes",
    "flush",
)


def fill(byte: int, length_bytes: int = MIB) -> bytes:
    return bytes((byte,)) * length_bytes


async def made_child() -> tuple[RecordingFile, VhdxDisk, Model]:
    """A child of a disk whose first two blocks are full of 200 and 201."""
    parent_file = new_file(4 * MIB)
    parent, model = open_disk(parent_file), Model(bytearray(4 * MIB))
    for block in (0, 1):
        await apply_step(parent, model, "write", block * MIB, fill(200 + block))
    await parent.close()
    parent = reopened(parent_file.killed())
    file = new_file(4 * MIB, parent=parent)
    model.flush()
    return file, parent, model


class PowerLost(Exception):
    """The host is gone."""


class CrashingFile(RecordingFile):
    """Loses power instead of its `flushes_left`th flush."""

    def __init__(self, content: bytes, flushes_left: int) -> None:
        super().__init__(content)
        self.flushes_left = flushes_left

    def flush_blocking(self) -> None:
        if not self.flushes_left:
            raise PowerLost
        self.flushes_left -= 1
        super().flush_blocking()
