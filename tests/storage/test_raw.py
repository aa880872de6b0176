"""RawStore does the same on every platform: each test runs on all of conftest's variants."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyiscsi_target.storage.base import (
    BackingStore,
    Buffer,
    Capabilities,
    Extent,
    Provisioning,
    StorageError,
    StorageFault,
)
from pyiscsi_target.storage.file_io import FileIo
from pyiscsi_target.storage.open import open_store
from pyiscsi_target.storage.raw import RawStore
from tests.storage.conftest import VARIANTS, Opener, Variant, hide

MIB = 1 << 20
SIZE_BYTES = 1 * MIB
MAPPED, DEALLOCATED = Provisioning.MAPPED, Provisioning.DEALLOCATED
ANCHORED = Provisioning.ANCHORED


async def read(store: BackingStore, offset_bytes: int, length_bytes: int) -> bytes:
    into = memoryview(bytearray(b"\xee" * length_bytes))
    if not store.read_now(offset_bytes, into):
        await store.read(offset_bytes, into)
    return bytes(into)


async def write(store: BackingStore, offset_bytes: int, *data: Buffer) -> None:
    if not store.write_now(offset_bytes, data):
        await store.write(offset_bytes, data)


def is_memory(variant: Variant) -> bool:
    return variant.path == "ram:"


async def test_begins_as_zeroes(variant: Variant, opener: Opener) -> None:
    store = opener(variant.path, SIZE_BYTES)
    assert store.size_bytes == SIZE_BYTES
    assert await read(store, 0, SIZE_BYTES) == bytes(SIZE_BYTES)
    await store.close()


async def test_reads_what_was_written(variant: Variant, opener: Opener) -> None:
    store = opener(variant.path, SIZE_BYTES)
    await write(store, 512, b"a" * 512, bytearray(b"b" * 512), memoryview(b"c" * 1024))
    assert await read(store, 0, 4096) == (
        bytes(512) + b"a" * 512 + b"b" * 512 + b"c" * 1024 + bytes(1536)
    )
    await store.close()


async def test_the_last_block(variant: Variant, opener: Opener) -> None:
    store = opener(variant.path, SIZE_BYTES)
    await write(store, SIZE_BYTES - 512, b"z" * 512)
    assert await read(store, SIZE_BYTES - 1024, 1024) == bytes(512) + b"z" * 512
    await store.close()


async def test_more_buffers_than_a_call_takes(variant: Variant, opener: Opener) -> None:
    store = opener(variant.path, 4 * MIB)
    data = [bytes([number % 251]) * 512 for number in range(3000)]
    await write(store, 512, *data, b"")
    assert await read(store, 512, 3000 * 512) == b"".join(data)
    await store.write(0, [b"", *reversed(data), b""])
    assert await read(store, 0, 3000 * 512) == b"".join(reversed(data))
    await store.close()


async def test_durable_writes(variant: Variant, opener: Opener) -> None:
    store = opener(variant.path, SIZE_BYTES)
    await store.write(4096, [b"d" * 512] * 2000, durable=True)
    await store.flush()
    assert await read(store, 4096, 2000 * 512) == b"d" * 2000 * 512
    await store.close()


async def test_content_outlives_the_store(variant: Variant, opener: Opener) -> None:
    store = opener(variant.path, SIZE_BYTES)
    await write(store, 4096, b"k" * 4096)
    await store.close()
    store = opener(variant.path, SIZE_BYTES)
    expected = bytes(4096) if is_memory(variant) else b"k" * 4096
    assert store.capabilities.volatile is is_memory(variant)
    assert await read(store, 4096, 4096) == expected
    await store.close()


@pytest.mark.parametrize("operation", ["deallocate", "write_zeroes"])
@pytest.mark.parametrize(
    ("offset_bytes", "length_bytes"),
    [(0, SIZE_BYTES), (4096, 8192), (512, 512), (3584, 5120), (4096, 0), (SIZE_BYTES - 512, 512)],
)
async def test_zeroing_ends_at_the_block(
    variant: Variant, opener: Opener, operation: str, offset_bytes: int, length_bytes: int
) -> None:
    store = opener(variant.path, SIZE_BYTES)
    model = bytearray(b"\xff" * SIZE_BYTES)
    await write(store, 0, bytes(model))
    await getattr(store, operation)(offset_bytes, length_bytes)
    model[offset_bytes : offset_bytes + length_bytes] = bytes(length_bytes)
    assert await read(store, 0, SIZE_BYTES) == model
    await store.close()


async def test_zeroing_more_than_a_call_writes(variant: Variant, opener: Opener) -> None:
    store = opener(variant.path, 4 * MIB)
    await write(store, 0, b"\xff" * 4 * MIB)
    await store.write_zeroes(512, 3 * MIB + 1024)
    expected = b"\xff" * 512 + bytes(3 * MIB + 1024)
    assert await read(store, 0, 4 * MIB) == expected.ljust(4 * MIB, b"\xff")
    await store.close()


def check_extents(extents: list[Extent], offset_bytes: int) -> None:
    """They follow each other without gaps, change state each time, and are whole blocks."""
    state = None
    for extent in extents:
        assert extent.offset_bytes == offset_bytes
        assert extent.length_bytes > 0
        assert extent.length_bytes % 512 == 0
        assert extent.state is not state
        offset_bytes, state = extent.offset_bytes + extent.length_bytes, extent.state


def knows_holes(variant: Variant) -> bool:
    return not {"SEEK_HOLE", "pread"} & set(variant.hidden)


async def test_extents(variant: Variant, opener: Opener) -> None:
    store = opener(variant.path, SIZE_BYTES)
    await write(store, 64 * 1024, b"m" * 64 * 1024)
    await write(store, 256 * 1024, b"m" * 64 * 1024)
    extents = await store.extents(0, SIZE_BYTES, 100)
    check_extents(extents, 0)
    if knows_holes(variant):
        assert [(extent.offset_bytes // 1024, extent.state) for extent in extents] == [
            (0, DEALLOCATED),
            (64, MAPPED),
            (128, DEALLOCATED),
            (256, MAPPED),
            (320, DEALLOCATED),
        ]
    else:
        assert extents == [Extent(0, SIZE_BYTES, MAPPED)]
    await store.close()


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6])
async def test_extents_stop_at_the_limit(opener: Opener, limit: int) -> None:
    store = opener("ram:", SIZE_BYTES)
    await write(store, 64 * 1024, b"m" * 64 * 1024)
    await write(store, 256 * 1024, b"m" * 64 * 1024)
    everything = await store.extents(0, SIZE_BYTES, 100)
    assert len(everything) == 5
    assert await store.extents(0, SIZE_BYTES, limit) == everything[:limit]
    await store.close()


async def test_extents_of_a_part(opener: Opener) -> None:
    store = opener("ram:", SIZE_BYTES)
    await write(store, 64 * 1024, b"m" * 64 * 1024)
    assert await store.extents(96 * 1024, 64 * 1024, 9) == [
        Extent(96 * 1024, 32 * 1024, MAPPED),
        Extent(128 * 1024, 32 * 1024, DEALLOCATED),
    ]
    assert await store.extents(66 * 1024, 512, 9) == [Extent(66 * 1024, 512, MAPPED)]
    assert await store.extents(512, 1024, 9) == [Extent(512, 1024, DEALLOCATED)]
    await store.close()


async def test_a_hole_shows_and_can_be_filled_again(opener: Opener) -> None:
    store = opener("ram:", SIZE_BYTES)
    await write(store, 0, b"m" * SIZE_BYTES)
    assert await store.extents(0, SIZE_BYTES, 9) == [Extent(0, SIZE_BYTES, MAPPED)]
    await store.deallocate(64 * 1024, 64 * 1024)
    assert [extent.state for extent in await store.extents(0, SIZE_BYTES, 9)] == [
        MAPPED,
        DEALLOCATED,
        MAPPED,
    ]
    await write(store, 64 * 1024, b"n" * 64 * 1024)
    assert await store.extents(0, SIZE_BYTES, 9) == [Extent(0, SIZE_BYTES, MAPPED)]
    await store.close()


async def test_deallocated_space_goes_back(opener: Opener, tmp_path: Path) -> None:
    store = opener(size_bytes=SIZE_BYTES)
    if not store.capabilities.deallocate_granularity_bytes:
        pytest.skip("the file system of the temporary directory punches no holes")
    await write(store, 0, b"m" * SIZE_BYTES)
    await store.flush()
    full = (tmp_path / "disk.img").stat().st_blocks
    await store.deallocate(0, SIZE_BYTES)
    assert (tmp_path / "disk.img").stat().st_blocks < full / 4
    assert (tmp_path / "disk.img").stat().st_size == SIZE_BYTES
    await store.close()


class ExtentsIo(FileIo):
    """Answers with fixed extents, as a file system with blocks of 512 bytes could."""

    def __init__(self, found: list[Extent]) -> None:
        self.found = found

    async def extents(self, ranges: Sequence[tuple[int, int]], limit: int) -> list[Extent]:
        return self.found[:limit]


async def test_extents_are_whole_blocks_of_the_disk() -> None:
    pieces = [
        (512, DEALLOCATED),
        (512, MAPPED),
        (11264, ANCHORED),
        (8192, DEALLOCATED),
        (4096, MAPPED),
    ]
    io = ExtentsIo(extents_of(pieces))
    store = RawStore(io, 24576, Capabilities(), block_size=4096)
    assert await store.extents(0, 24576, 9) == [
        Extent(0, 4096, MAPPED),
        Extent(4096, 8192, ANCHORED),
        Extent(12288, 8192, DEALLOCATED),
        Extent(20480, 4096, MAPPED),
    ]
    # Only the first was looked at here, and nobody knows what the rest of its block is.
    assert await store.extents(0, 24576, 1) == [Extent(0, 4096, MAPPED)]


def extents_of(pieces: list[tuple[int, Provisioning]]) -> list[Extent]:
    found, offset = [], 0
    for length, state in pieces:
        found.append(Extent(offset, length, state))
        offset += length
    return found


async def test_prefetch_changes_nothing(variant: Variant, opener: Opener) -> None:
    store = opener(variant.path, SIZE_BYTES)
    await write(store, 0, b"p" * 4096)
    await store.prefetch(0, SIZE_BYTES)
    assert await read(store, 0, 4096) == b"p" * 4096
    await store.close()


async def test_close_twice_and_together(variant: Variant, opener: Opener) -> None:
    store = opener(variant.path, SIZE_BYTES)
    await asyncio.gather(store.close(), store.close())
    await store.close()


async def test_a_closed_store_is_gone(variant: Variant, opener: Opener) -> None:
    store = opener(variant.path, SIZE_BYTES)
    await store.close()
    for attempt in (read(store, 0, 512), write(store, 0, bytes(512)), store.deallocate(0, 512)):
        with pytest.raises(StorageError) as caught:
            await attempt
        assert caught.value.fault is StorageFault.GONE


async def test_a_read_only_store_takes_no_writes(variant: Variant, opener: Opener) -> None:
    writable = opener(variant.path, SIZE_BYTES)
    await writable.close()
    store = opener(variant.path, SIZE_BYTES, read_only=True)
    assert store.capabilities == replace(writable.capabilities, read_only=True)
    assert not store.write_now(0, [bytes(512)])
    for attempt in (
        store.write(0, [bytes(512)]),
        store.write(0, [bytes(512)], durable=True),
        store.deallocate(0, 512),
        store.write_zeroes(0, 512),
    ):
        with pytest.raises(StorageError) as caught:
            await attempt
        assert caught.value.fault is StorageFault.READ_ONLY
    await store.flush()
    assert await read(store, 0, 512) == bytes(512)
    await store.close()


async def test_a_file_cut_short_behind_our_back(opener: Opener, tmp_path: Path) -> None:
    for variant in VARIANTS:
        if is_memory(variant) or variant.name == "slow":
            continue
        with pytest.MonkeyPatch.context() as monkeypatch:
            hide(monkeypatch, variant)
            store = opener(size_bytes=SIZE_BYTES)
            with (tmp_path / "disk.img").open("r+b") as file:
                file.truncate(6144)
            with pytest.raises(StorageError, match="ends at byte 6144") as caught:
                await read(store, 4096, 4096)
            assert caught.value.fault is StorageFault.SHORT
            assert caught.value.offset_bytes == 6144
            assert await read(store, 4096, 2048) == bytes(2048)
            await store.close()
            (tmp_path / "disk.img").unlink()


BLOCKS = 64
_ranges = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 16)).map(
    lambda pair: (pair[0], min(pair[1], BLOCKS - pair[0]))
)
_steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["write", "vectored", "threaded", "durable", "deallocate", "write_zeroes", "reopen"]
        ),
        _ranges,
        st.integers(1, 255),
    ),
    max_size=12,
)


async def take_step(store: BackingStore, model: bytearray, step: str, at: int, data: bytes) -> None:
    blocks = [data[start : start + 512] for start in range(0, len(data), 512)]
    match step:
        case "write":
            await write(store, at, data)
        case "vectored":
            await write(store, at, *blocks)
        case "threaded" | "durable":
            await store.write(at, blocks, durable=step == "durable")
        case "deallocate" | "write_zeroes":
            await getattr(store, step)(at, len(data))
            data = bytes(len(data))
    model[at : at + len(data)] = data


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@settings(max_examples=15, deadline=None)
@given(steps=_steps)
def test_against_a_bytearray(
    tmp_path_factory: pytest.TempPathFactory,
    variant: Variant,
    steps: list[tuple[str, tuple[int, int], int]],
) -> None:
    base = tmp_path_factory.mktemp("model")

    def open_it() -> BackingStore:
        return open_store(
            variant.path, size_bytes=BLOCKS * 512, read_only=False, base=base, block_size=512
        )

    async def run() -> None:
        store, model = open_it(), bytearray(BLOCKS * 512)
        for step, (block, count), fill in steps:
            if step != "reopen":
                await take_step(store, model, step, block * 512, bytes([fill]) * count * 512)
            elif not is_memory(variant):
                await store.close()
                store = open_it()
            assert (
                await read(store, block * 512, count * 512)
                == (model[block * 512 : (block + count) * 512])
            )
        assert await read(store, 0, BLOCKS * 512) == model
        extents = await store.extents(0, BLOCKS * 512, 1000)
        check_extents(extents, 0)
        for extent in extents:
            if extent.state is DEALLOCATED:
                end = extent.offset_bytes + extent.length_bytes
                assert not any(model[extent.offset_bytes : end])
        await store.close()

    with pytest.MonkeyPatch.context() as monkeypatch:
        hide(monkeypatch, variant)
        asyncio.run(run())


async def test_grows_with_zeroes(variant: Variant, opener: Opener) -> None:
    store = opener(variant.path, SIZE_BYTES)
    await write(store, SIZE_BYTES - 512, b"a" * 512)
    await store.resize(2 * SIZE_BYTES)
    assert store.size_bytes == 2 * SIZE_BYTES
    assert await read(store, SIZE_BYTES - 512, 1024) == b"a" * 512 + bytes(512)
    await write(store, 2 * SIZE_BYTES - 512, b"z" * 512)
    await store.close()
    if not is_memory(variant):
        again = opener(variant.path, None)
        assert again.size_bytes == 2 * SIZE_BYTES
        await again.close()


async def test_shrinks_only_where_nothing_is(variant: Variant, opener: Opener) -> None:
    store = opener(variant.path, SIZE_BYTES)
    await write(store, SIZE_BYTES // 2, b"a" * 512)
    with pytest.raises(StorageError, match=f"holds data at byte {SIZE_BYTES // 2},") as refused:
        await store.resize(SIZE_BYTES // 4)
    assert refused.value.fault is StorageFault.INVALID
    assert store.size_bytes == SIZE_BYTES
    assert await read(store, SIZE_BYTES // 2, 512) == b"a" * 512
    await write(store, 3 * SIZE_BYTES // 4, bytes(512))
    await store.resize(3 * SIZE_BYTES // 4)
    assert store.size_bytes == 3 * SIZE_BYTES // 4
    await store.close()


async def test_what_is_left_is_what_the_file_system_says(
    variant: Variant, opener: Opener, tmp_path: Path
) -> None:
    store = opener(variant.path, SIZE_BYTES)
    left = await store.available_bytes()
    if variant.name == "memory":
        assert left is None
    elif not is_memory(variant):
        found = os.statvfs(tmp_path)
        assert left is not None
        assert abs(left - found.f_bavail * found.f_frsize) < 1 << 30  # others write meanwhile
    await store.close()
