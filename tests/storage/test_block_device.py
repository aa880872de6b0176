import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pyiscsi_target.storage import block_device
from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.block_device import (
    discard_granularity_bytes,
    logical_block_bytes,
    physical_block_bytes,
)
from tests.storage.conftest import Opener

MIB = 1 << 20


@pytest.fixture(params=[512, 4096])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A loop device of 16 MiB with this logical block size, where one may be made."""
    image = tmp_path / "loop.img"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    command = ["losetup", "--find", "--show", "--sector-size", str(request.param), str(image)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no losetup command")
    if done.returncode:
        pytest.skip(f"no loop device may be made: {done.stderr.strip()}")
    name = done.stdout.strip()
    yield name
    subprocess.run(["losetup", "--detach", name], check=True)


async def test_a_disk_on_a_device(device: str, opener: Opener) -> None:
    store = opener(device, None)
    assert store.size_bytes == 16 * MIB
    assert store.write_now(512, [b"a" * 512, b"b" * 1024])
    await store.write(16 * MIB - 512, [b"z" * 512], durable=True)
    into = memoryview(bytearray(2048))
    await store.read(512, into)
    assert into == b"a" * 512 + b"b" * 1024 + bytes(512)
    await store.flush()
    await store.close()
    again = opener(device, None, read_only=True)
    await again.read(16 * MIB - 512, into[:512])
    assert into[:512] == b"z" * 512
    await again.close()


@pytest.mark.parametrize("operation", ["deallocate", "write_zeroes"])
async def test_zeroing_a_part(device: str, opener: Opener, operation: str) -> None:
    store = opener(device, 16 * MIB)
    assert store.write_now(0, [b"x" * MIB])
    await getattr(store, operation)(512, MIB - 1024)
    into = memoryview(bytearray(MIB))
    await store.read(0, into)
    assert into == b"x" * 512 + bytes(MIB - 1024) + b"x" * 512
    await store.close()


async def test_deallocated_space_reaches_the_medium(
    device: str, opener: Opener, tmp_path: Path
) -> None:
    store = opener(device, None)
    if not store.capabilities.deallocate_granularity_bytes:
        pytest.skip("this loop device takes no discards")
    await store.write(0, [b"x" * 8 * MIB], durable=True)
    full = (tmp_path / "loop.img").stat().st_blocks
    await store.deallocate(0, 16 * MIB)
    assert (tmp_path / "loop.img").stat().st_blocks < full / 4
    await store.close()


def block_sizes(device: str) -> tuple[int, int]:
    """(logical, physical) as another program sees them."""
    command = ["blockdev", "--getss", "--getpbsz", device]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    logical, physical = map(int, found.stdout.split())
    return logical, physical


async def test_block_sizes(device: str, opener: Opener) -> None:
    logical, physical = block_sizes(device)
    store = opener(device, None)
    assert store.capabilities.logical_block_bytes == logical
    assert store.capabilities.physical_block_bytes == max(physical, 512)
    await store.close()


async def test_a_device_is_busy_under_every_name(
    device: str, opener: Opener, tmp_path: Path
) -> None:
    store = opener(device, None)
    alias = tmp_path / "alias"
    os.mknod(alias, 0o600 | 0o060000, os.stat(device).st_rdev)
    for name in (device, str(alias)):
        with pytest.raises(StorageError, match=name) as caught:
            opener(name, None)
        assert caught.value.fault is StorageFault.BUSY
    await store.close()
    await opener(str(alias), None).close()


async def test_readers_share_a_device(device: str, opener: Opener) -> None:
    writable = opener(device, None)
    await writable.close()
    stores = [opener(device, None, read_only=True) for _ in range(2)]
    assert stores[0].capabilities == replace(writable.capabilities, read_only=True)
    with pytest.raises(StorageError):
        opener(device, None)
    for store in stores:
        await store.close()


def test_another_size(device: str, opener: Opener) -> None:
    with pytest.raises(StorageError, match=f"{device}: has {16 * MIB} bytes") as caught:
        opener(device, 32 * MIB)
    assert caught.value.fault is StorageFault.INVALID


def test_no_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)  # not a block device
    monkeypatch.setattr(block_device, "SYSFS", tmp_path)
    assert logical_block_bytes(fd) == 512
    assert physical_block_bytes(fd) == 512
    assert discard_granularity_bytes(fd) == 0
    monkeypatch.setattr(block_device, "fcntl", None)
    assert logical_block_bytes(fd) == 512
    os.close(fd)


@pytest.mark.parametrize("limit_bytes", [0, 1 << 30])
@pytest.mark.parametrize("partition", [False, True])
def test_discards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_bytes: int, partition: bool
) -> None:
    monkeypatch.setattr(block_device, "SYSFS", tmp_path)
    fd = os.open("/dev/null", os.O_RDONLY)
    disk = tmp_path / "1:3"
    disk.mkdir()
    queue = (tmp_path if partition else disk) / "queue"
    queue.mkdir()
    (queue / "discard_max_bytes").write_text(f"{limit_bytes}\n")
    (queue / "discard_granularity").write_text("65536\n")
    assert discard_granularity_bytes(fd) == (65536 if limit_bytes else 0)
    os.close(fd)
