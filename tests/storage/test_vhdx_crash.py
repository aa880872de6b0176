"""VHDX disks that lose their process or their power, against a model."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from pyiscsi_target.storage.vhdx import VhdxDisk
from pyiscsi_target.storage.vhdx_create import Kind
from tests.support.images import MIB
from tests.support.vhdx_disks import (
    SECTOR,
    STEPS,
    Model,
    apply_step,
    check_crashes,
    new_file,
    open_disk,
    read,
    reopened,
)

SIZE = 4 * MIB + 64 * 1024
SECTORS = SIZE // SECTOR
UNIT = 64 * 1024

_ranges = st.one_of(
    st.tuples(st.integers(0, SECTORS - 1), st.integers(1, 24)),
    st.tuples(st.integers(0, SECTORS // 128).map(lambda at: at * 128), st.integers(1, 5000)),
    st.tuples(st.integers(0, 4).map(lambda at: at * 2048), st.just(2048)),
).map(lambda pair: (min(pair[0], SECTORS - 1), min(pair[1], SECTORS - min(pair[0], SECTORS - 1))))
_steps = st.lists(
    st.tuples(st.sampled_from([*STEPS, "crash", "reopen"]), _ranges, st.integers(1, 255)),
    min_size=1,
    max_size=10,
)
Steps = list[tuple[str, tuple[int, int], int]]


async def _run(steps: Steps, kind: Kind, parent: VhdxDisk | None, base: bytes) -> None:
    file = new_file(SIZE, kind, parent=parent)
    disk, model = open_disk(file, parent), Model(bytearray(base))
    for number, (step, (first, count), fill) in enumerate([*steps, ("crash", (0, 1), 1)]):
        offset = first * SECTOR
        if step == "crash":
            await check_crashes(file, model, 6, number, parent)
        elif step == "reopen":
            if parent is None:
                await disk.close()  # closes its parent, too
            content = file.killed()
            file = type(file)(content)
            disk = open_disk(file, parent)
            model.flush() if parent is None else None
            if parent is not None:
                file.flush_blocking()
                model.flush()
        else:
            # Sectors differ from each other, so that one in another's place is found.
            data = b"".join(
                bytes((fill,)) * (SECTOR - 4) + (first + at).to_bytes(4, "little")
                for at in range(count)
            )
            await apply_step(disk, model, step, offset, data)
        assert (
            await read(disk, offset, count * SECTOR)
            == (model.content[offset : offset + count * SECTOR])
        )
    assert await read(disk, 0, SIZE) == model.content


@settings(max_examples=25, deadline=None)
@given(steps=_steps)
def test_a_dynamic_disk(steps: Steps) -> None:
    asyncio.run(_run(steps, Kind.DYNAMIC, None, bytes(SIZE)))


@settings(max_examples=8, deadline=None)
@given(steps=_steps)
def test_a_fixed_disk(steps: Steps) -> None:
    asyncio.run(_run(steps, Kind.FIXED, None, bytes(SIZE)))


@settings(max_examples=25, deadline=None)
@given(steps=_steps)
def test_a_differencing_disk(steps: Steps) -> None:
    asyncio.run(_run_child(steps))


async def _run_child(steps: Steps) -> None:
    """The parent is smaller, has one block less, and holes."""
    file = new_file(3 * MIB + 512)
    parent, model = open_disk(file), Model(bytearray(SIZE))
    for at in (0, 1, 3):
        data = bytes((200 + at,)) * (MIB - 128 * 1024)
        data = data[: 3 * MIB + 512 - at * MIB]
        await apply_step(parent, model, "write", at * MIB, data)
    await parent.close()
    content = bytearray(file.killed())
    await _run(steps, Kind.DYNAMIC, reopened(bytes(content)), bytes(model.content))
