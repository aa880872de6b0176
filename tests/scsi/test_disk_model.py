"""All block commands against the simplest model of a disk: bytes in a bytearray.

Random commands of every kind go to one disk, whose store answers at once or makes them wait. Alone
they must do exactly what the model does; several at a time, the exclusive ones among them must come
out as if they had been sent one after the other in some order.
"""

import asyncio
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from pyiscsi_target.scsi.identifiers import Identity
from pyiscsi_target.scsi.logical_unit import DiskSettings, LogicalUnit
from pyiscsi_target.scsi.sense import Asc
from pyiscsi_target.scsi.task import Result, Status, Task
from pyiscsi_target.storage.base import Buffer
from tests.support.faulty_disk import FaultyStore
from tests.support.memory_disk import SEED, make_nexus

BLOCK = 512
BLOCKS = 24
ONE = make_nexus("one")


@dataclass(frozen=True)
class Command:
    """A command's kind, its blocks, and the seed byte of its data."""

    kind: str
    lba: int
    blocks: int
    fill: int
    variant: int


commands = st.builds(
    Command,
    kind=st.deferred(lambda: st.sampled_from(sorted(KINDS))),
    lba=st.integers(0, BLOCKS + 1),
    blocks=st.integers(0, 9),
    fill=st.integers(0, 3),
    variant=st.integers(0, 3),
)


def pattern(command: Command, blocks: int) -> bytes:
    """Recognizable data: every block its own, few values, so that comparisons also succeed."""
    return b"".join(bytes([command.fill + n % 2]) * BLOCK for n in range(blocks))


def extent_cdb(opcodes: str, command: Command, flags: int = 0) -> bytes:
    """The 10, 12 or 16 byte CDB, by the variant."""
    opcode = bytes.fromhex(opcodes)[command.variant % 3 if len(opcodes) == 6 else 0]
    lba, blocks = command.lba, command.blocks
    group = opcode >> 5
    if group == 5:
        return struct.pack(">BBIIxx4x", opcode, flags, lba, blocks)
    if group == 4:
        return struct.pack(">BBQIxx", opcode, flags, lba, blocks)
    return struct.pack(">BBIxHx6x", opcode, flags, lba, blocks)


# One function per kind: what to send, and what the model makes of it. Each returns the CDB, the
# data-out, and a step that changes the model and returns the expected data-in and sense code.

Expected = tuple[bytes, Asc | None]
Step = Callable[[bytearray], Expected]
OUT_OF_RANGE = Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE


def fits(command: Command) -> bool:
    return command.lba + command.blocks <= BLOCKS


def span(command: Command) -> slice:
    return slice(command.lba * BLOCK, (command.lba + command.blocks) * BLOCK)


def read(command: Command) -> tuple[bytes, bytes, Step]:
    def step(model: bytearray) -> Expected:
        return (bytes(model[span(command)]), None) if fits(command) else (b"", OUT_OF_RANGE)

    return extent_cdb("28a888", command, 0x08 if command.fill == 3 else 0), b"", step


def write(command: Command) -> tuple[bytes, bytes, Step]:
    """The data may be half a block short or long."""
    data = pattern(command, command.blocks)
    sent = data + bytes(256) if command.variant == 3 else data[: len(data) - 256 * command.fill]

    def step(model: bytearray) -> Expected:
        if not fits(command):
            return b"", OUT_OF_RANGE
        whole = min(len(sent) // BLOCK * BLOCK, len(data))
        model[command.lba * BLOCK : command.lba * BLOCK + whole] = data[:whole]
        return b"", None

    return extent_cdb("2aaa8a", command, 0x08 if command.fill == 3 else 0), sent, step


def write_and_verify(command: Command) -> tuple[bytes, bytes, Step]:
    data = pattern(command, command.blocks)

    def step(model: bytearray) -> Expected:
        if not fits(command):
            return b"", OUT_OF_RANGE
        model[span(command)] = data
        return b"", None

    return extent_cdb("2eae8e", command, 0x02 if command.fill % 2 else 0), data, step


def verify(command: Command) -> tuple[bytes, bytes, Step]:
    one_block = command.fill == 0
    data = bytes(BLOCK) if one_block else pattern(command, command.blocks)

    def step(model: bytearray) -> Expected:
        if not fits(command):
            return b"", OUT_OF_RANGE
        expected = data * command.blocks if one_block else data
        same = bytes(model[span(command)]) == expected
        return b"", None if same else Asc.MISCOMPARE_DURING_VERIFY_OPERATION

    return extent_cdb("2faf8f", command, 0x06 if one_block else 0x02), data, step


def write_same(command: Command) -> tuple[bytes, bytes, Step]:
    no_data = command.variant == 3
    flags = (0x08 if command.variant % 2 else 0) | (0x01 if no_data else 0)
    data = b"" if no_data else bytes([command.fill]) * BLOCK

    def step(model: bytearray) -> Expected:
        blocks = command.blocks or BLOCKS - command.lba  # none: to the end
        if not fits(command) or blocks <= 0:
            return b"", OUT_OF_RANGE
        start = command.lba * BLOCK
        model[start : start + blocks * BLOCK] = (data or bytes(BLOCK)) * blocks
        return b"", None

    return extent_cdb("93" if no_data or command.fill else "41", command, flags), data, step


def unmap(command: Command) -> tuple[bytes, bytes, Step]:
    descriptor = struct.pack(">QI4x", command.lba, command.blocks)
    data = struct.pack(">HH4x", 22, 16) + descriptor

    def step(model: bytearray) -> Expected:
        if not fits(command):
            return b"", OUT_OF_RANGE
        model[span(command)] = bytes(command.blocks * BLOCK)
        return b"", None

    return bytes.fromhex("42 00 00000000 00 0018 00 000000000000"), data, step


def compare_and_write(command: Command) -> tuple[bytes, bytes, Step]:
    expected, new = pattern(command, command.blocks), bytes([7]) * command.blocks * BLOCK

    def step(model: bytearray) -> Expected:
        if not fits(command):
            return b"", OUT_OF_RANGE
        if model[span(command)] != expected:
            return b"", Asc.MISCOMPARE_DURING_VERIFY_OPERATION
        model[span(command)] = new
        return b"", None

    cdb = struct.pack(">BBQ3xBxx", 0x89, 0, command.lba, command.blocks)
    return cdb, expected + new, step


def orwrite(command: Command) -> tuple[bytes, bytes, Step]:
    data = pattern(command, command.blocks)

    def step(model: bytearray) -> Expected:
        if not fits(command):
            return b"", OUT_OF_RANGE
        old = model[span(command)]
        model[span(command)] = bytes(a | b for a, b in zip(old, data, strict=True))
        return b"", None

    return extent_cdb("8b", command), data, step


def write_atomic(command: Command) -> tuple[bytes, bytes, Step]:
    data = pattern(command, command.blocks)

    def step(model: bytearray) -> Expected:
        if not fits(command):
            return b"", OUT_OF_RANGE
        model[span(command)] = data
        return b"", None

    cdb = struct.pack(">BBQHHxx", 0x9C, 0, command.lba, 0, command.blocks)
    return cdb, data, step


KINDS: dict[str, Callable[[Command], tuple[bytes, bytes, Step]]] = {
    "read": read,
    "write": write,
    "write and verify": write_and_verify,
    "verify": verify,
    "write same": write_same,
    "unmap": unmap,
    "compare and write": compare_and_write,
    "orwrite": orwrite,
    "write atomic": write_atomic,
}


def make_disk(
    now: bool, write_cache: bool, store_class: type[FaultyStore] = FaultyStore
) -> tuple[LogicalUnit, FaultyStore]:
    store = store_class(BLOCKS * BLOCK)
    store.now = now
    disk_settings = DiskSettings(write_cache=write_cache)
    return LogicalUnit("model", store, Identity.from_seed(SEED), disk_settings), store


def check(result: Result, expected: Expected, command: Command) -> None:
    data, asc = expected
    if asc is not None:
        assert result.status == Status.CHECK_CONDITION, command
        assert Asc((result.sense[12], result.sense[13])) is asc, command
    else:
        assert result.status == Status.GOOD, (command, result.sense.hex())
        assert bytes(result.data or b"") == data, command


@settings(max_examples=150, deadline=None)
@given(st.lists(commands, min_size=1, max_size=25), st.booleans(), st.booleans())
def test_one_command_after_another(script: list[Command], now: bool, write_cache: bool) -> None:
    lu, store = make_disk(now, write_cache)
    model = bytearray(BLOCKS * BLOCK)

    async def play() -> None:
        for command in script:
            cdb, data, step = KINDS[command.kind](command)
            half = len(data) // 3
            task = Task(ONE, 0, cdb.ljust(16, b"\0"), [data[:half], data[half:]])
            outcome = lu.execute(task)
            result = outcome if isinstance(outcome, Result) else await outcome
            check(result, step(model), command)
            assert store.content == model, command
        assert not lu.tasks.unfinished
        assert not lu.ranges.conflicts(0, BLOCKS, True)

    asyncio.run(play())


# COMPARE AND WRITE, ORWRITE and WRITE ATOMIC at once: there must be an order that explains it all.
exclusive = st.builds(
    Command,
    kind=st.sampled_from(["compare and write", "orwrite", "write atomic"]),
    lba=st.integers(0, 3),
    blocks=st.integers(1, 4),
    fill=st.integers(0, 2),
    variant=st.just(0),
)


class HaltingStore(FaultyStore):
    """Gives way to other tasks in the middle of every operation, one block at a time."""

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        for start in range(0, len(into), BLOCK):
            await super().read(offset_bytes + start, into[start : start + BLOCK])
            await asyncio.sleep(0)

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        joined = b"".join(data)
        for start in range(0, len(joined), BLOCK):
            await super().write(offset_bytes + start, [joined[start : start + BLOCK]])
            await asyncio.sleep(0)


def outcomes(order: Sequence[Command]) -> tuple[bytes, dict[int, Asc | None]]:
    """The content and each command's sense code if they run in this order."""
    model = bytearray(BLOCKS * BLOCK)
    codes = {id(command): KINDS[command.kind](command)[2](model)[1] for command in order}
    return bytes(model), codes


@settings(max_examples=100, deadline=None)
@given(st.lists(exclusive, min_size=2, max_size=4))
def test_exclusive_commands_at_once_are_in_some_order(script: list[Command]) -> None:
    lu, store = make_disk(False, True, HaltingStore)

    async def play() -> list[Result]:
        pending = []
        for command in script:
            cdb, data, _ = KINDS[command.kind](command)
            outcome = lu.execute(Task(ONE, 0, cdb, [data]))
            assert not isinstance(outcome, Result)
            pending.append(asyncio.ensure_future(outcome))
        return list(await asyncio.gather(*pending))

    script = [replace(command) for command in script]  # equal ones are still different ones
    results = asyncio.run(play())
    seen = {
        id(command): Asc((result.sense[12], result.sense[13])) if result.sense else None
        for command, result in zip(script, results, strict=True)
    }
    assert (bytes(store.content), seen) in [outcomes(order) for order in permutations(script)]
