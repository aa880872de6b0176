"""An overlay behaves as a disk of its own, and the image below never changes."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyiscsi_target.storage.base import Capabilities, Provisioning, StorageError, StorageFault
from pyiscsi_target.storage.overlay import BLOCK_BYTES, OverlayStore
from pyiscsi_target.storage.raw import RawStore
from tests.support.recording_file import RecordingFile

SECTOR = 512
SIZE_BYTES = 3 * BLOCK_BYTES + 5 * SECTOR  # the last block is cut
CONTENT = random.Random(1).randbytes(SIZE_BYTES)
READ_ONLY = Capabilities(read_only=True, deallocate_granularity_bytes=4096)


def overlay(content: bytes = CONTENT) -> tuple[OverlayStore, RecordingFile]:
    image = RawStore(RecordingFile(content, read_only=True), len(content), READ_ONLY)
    file = RecordingFile()
    return OverlayStore(image, file), file


async def read(store: OverlayStore, offset_bytes: int, length_bytes: int) -> bytes:
    into = memoryview(bytearray(b"\xee" * length_bytes))
    if not store.read_now(offset_bytes, into):
        await store.read(offset_bytes, into)
    return bytes(into)


async def write(store: OverlayStore, offset_bytes: int, data: bytes) -> None:
    if not store.write_now(offset_bytes, [data]):
        await store.write(offset_bytes, [data], durable=offset_bytes % 1024 == 0)


PLACES = st.integers(0, SIZE_BYTES // SECTOR - 1)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "zeroes", "deallocate", "anchor", "read"]),
        PLACES,
        st.integers(1, 3 * BLOCK_BYTES // SECTOR),
        st.integers(0, 255),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.booleans())
def test_as_plain_bytes(steps: list[tuple[str, int, int, int]], slow: bool) -> None:
    asyncio.run(_as_plain_bytes(steps, slow))


async def _as_plain_bytes(steps: list[tuple[str, int, int, int]], slow: bool) -> None:
    store, file = overlay()
    file.slow = slow
    model = bytearray(CONTENT)
    for what, place, count, value in steps:
        offset = place * SECTOR
        end = min(SIZE_BYTES, offset + count * SECTOR)
        if what == "write":
            model[offset:end] = bytes([value]) * (end - offset)
            await write(store, offset, bytes([value]) * (end - offset))
        elif what == "read":
            assert await read(store, offset, end - offset) == model[offset:end]
        else:
            model[offset:end] = bytes(end - offset)
            zero = {"deallocate": store.deallocate, "anchor": store.anchor}
            await zero.get(what, store.write_zeroes)(offset, end - offset)
    assert await read(store, 0, SIZE_BYTES) == model
    image = store.parent
    assert isinstance(image, RawStore)
    await store.flush()
    await store.close()
    await store.close()


async def test_two_parts_of_one_block_at_once() -> None:
    store, file = overlay()
    file.slow = True
    await asyncio.gather(*(write(store, part * 4096, b"%x" % part * 4096) for part in range(16)))
    expected = b"".join(b"%x" % part * 4096 for part in range(16))
    assert await read(store, 0, BLOCK_BYTES) == expected


async def test_zeroes_take_no_space() -> None:
    store, file = overlay()
    await store.deallocate(0, BLOCK_BYTES)
    changes = len(file.changes)
    await write(store, 0, bytes(BLOCK_BYTES))
    await write(store, 512, bytes(512))
    assert len(file.changes) == changes
    states = [extent.state for extent in await store.extents(0, SIZE_BYTES, 9)]
    assert states == [Provisioning.DEALLOCATED, Provisioning.MAPPED]


async def test_no_room_for_changes() -> None:
    store, file = overlay()
    file.fail = StorageError(StorageFault.OUT_OF_SPACE, "full")
    with pytest.raises(StorageError):
        await store.write(512, [b"x" * 512])
    assert await read(store, 0, SIZE_BYTES) == CONTENT
    await write(store, 512, b"x" * 512)
    assert await read(store, 512, 512) == b"x" * 512


async def test_what_was_discarded_never_comes_back() -> None:
    """Also where the file could not be emptied, and the discard is repeated."""
    store, file = overlay()
    await write(store, 0, b"s" * 2 * BLOCK_BYTES)
    file.fail = StorageError(StorageFault.OUT_OF_SPACE, "full")
    with pytest.raises(StorageError, match="full"):
        await store.deallocate(0, 2 * BLOCK_BYTES)
    await store.deallocate(0, 2 * BLOCK_BYTES)
    for block in (0, BLOCK_BYTES):
        await write(store, block + 512, b"x" * 512)
        expected = bytes(512) + b"x" * 512 + bytes(BLOCK_BYTES - 1024)
        assert await read(store, block, BLOCK_BYTES) == expected
