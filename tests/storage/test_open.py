import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyiscsi_target.storage import open as module
from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.describe import describe_chain
from pyiscsi_target.storage.filters import DelayStore, ErrorStore
from pyiscsi_target.storage.open import (
    image_path,
    is_volatile,
    open_image,
    open_store,
    resolve_path,
)
from pyiscsi_target.storage.raw import RawStore
from pyiscsi_target.storage.vhdx_create import Kind
from tests.storage.conftest import Opener

MIB = 1 << 20


def refused(opener: Opener, path: str, *args: object, **options: object) -> StorageError:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(StorageError) as caught:
        opener(path, *args, **options)  # type: ignore[arg-type]
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
    return caught.value


async def test_a_missing_file_is_created_sparse(opener: Opener, tmp_path: Path) -> None:
    store = opener("disks/deep/a.img", 1 << 40)
    assert isinstance(store, RawStore)
    assert store.size_bytes == 1 << 40
    await store.close()
    found = (tmp_path / "disks/deep/a.img").stat()
    assert found.st_size == 1 << 40
    assert found.st_blocks * 512 < MIB
    assert found.st_mode & 0o077 == 0


async def test_an_existing_file_needs_no_size(opener: Opener, tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(bytes(3 * 512))
    store = opener("a.img", None)
    assert store.size_bytes == 3 * 512
    assert store.capabilities.logical_block_bytes == 512
    await store.close()


async def test_absolute_paths(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(4096))
    store = open_store(
        str(path), size_bytes=4096, read_only=True, base=Path("/nowhere"), block_size=4096
    )
    assert store.capabilities.read_only
    await store.close()


@pytest.mark.parametrize(
    ("size_bytes", "options", "message"),
    [
        (None, {}, "no such file; a size would create it"),
        (MIB, {"read_only": True}, "no such file; it is read-only, so not created"),
    ],
)
def test_missing(
    opener: Opener, tmp_path: Path, size_bytes: int | None, options: dict[str, bool], message: str
) -> None:
    error = refused(opener, "a.img", size_bytes, **options)
    assert error.fault is StorageFault.MISSING
    assert str(error) == f"{tmp_path}/a.img: {message}"
    assert not (tmp_path / "a.img").exists()


def test_directories_are_created_below_the_base_alone(tmp_path: Path) -> None:
    base = tmp_path / "config"
    base.mkdir()
    error = refused(Opener(base), f"{tmp_path}/mnt/a.img", MIB)
    assert error.fault is StorageFault.MISSING
    assert str(error).startswith(f"{tmp_path}/mnt: no such directory")
    assert not (tmp_path / "mnt").exists()


@pytest.mark.parametrize("there_bytes", [512, 2 * MIB])
def test_another_size(opener: Opener, tmp_path: Path, there_bytes: int) -> None:
    with (tmp_path / "a.img").open("wb") as file:
        file.truncate(there_bytes)
    error = refused(opener, "a.img", MIB)
    assert error.fault is StorageFault.INVALID
    assert f"{tmp_path}/a.img: has {there_bytes} bytes" in str(error)
    assert f"configured size is {MIB} bytes" in str(error)
    assert (tmp_path / "a.img").stat().st_size == there_bytes


@pytest.mark.parametrize("there_bytes", [0, 512, 4096 + 512])
def test_not_whole_blocks(opener: Opener, tmp_path: Path, there_bytes: int) -> None:
    (tmp_path / "a.img").write_bytes(bytes(there_bytes))
    error = refused(opener, "a.img", None, block_size=4096)
    assert error.fault is StorageFault.INVALID
    assert f"{tmp_path}/a.img: {there_bytes} bytes are" in str(error)
    assert "block" in str(error)


def test_a_bad_size_creates_nothing(opener: Opener, tmp_path: Path) -> None:
    assert refused(opener, "a.img", 1000).fault is StorageFault.INVALID
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_that_large_is_not_left_behind(
    opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, length_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    error = refused(opener, "a.img", MIB)
    assert error.fault is StorageFault.OUT_OF_SPACE
    assert "a.img" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_disk(opener: Opener, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    for path in ("directory", "pipe", "/dev/null"):
        for read_only in (False, True):
            error = refused(opener, path, None, read_only=read_only)
            assert error.fault is StorageFault.INVALID, path
            assert path in str(error)
    assert refused(opener, "file/a.img", MIB).fault is StorageFault.INVALID


def test_a_link_to_nothing_is_not_followed(opener: Opener, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    for path in ("loop", "dangling"):
        error = refused(opener, path, MIB)
        assert error.fault is StorageFault.MISSING
        assert f"{tmp_path}/{path}: a symbolic link to nothing" in str(error)
    assert not (tmp_path / "nothing").exists()


async def test_a_busy_image(opener: Opener, tmp_path: Path) -> None:
    store = opener("a.img", MIB)
    (tmp_path / "b.img").symlink_to("a.img")
    for path in ("a.img", "b.img"):
        error = refused(opener, path, MIB)
        assert error.fault is StorageFault.BUSY
        assert f"{tmp_path}/{path}: in use" in str(error)
    await store.close()
    await opener("b.img", MIB).close()


async def test_readers_share(opener: Opener) -> None:
    await opener("a.img", MIB).close()
    stores = [opener("a.img", MIB, read_only=True) for _ in range(2)]
    assert refused(opener, "a.img", MIB).fault is StorageFault.BUSY
    for store in stores:
        await store.close()


def write_and_be_killed(directory: Path) -> int:
    code = (
        "import os, signal; from pathlib import Path;"
        "from pyiscsi_target.storage.open import open_store;"
        f"s = open_store('a.img', size_bytes={MIB}, read_only=False,"
        f" base=Path({str(directory)!r}), block_size=512);"
        "s.write_now(512, [b'k' * 512]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


async def test_a_killed_server_leaves_no_lock(opener: Opener, tmp_path: Path) -> None:
    assert write_and_be_killed(tmp_path) == -9
    store, into = opener("a.img", MIB), memoryview(bytearray(512))
    await store.read(512, into)
    assert into == b"k" * 512  # what was acknowledged is not lost
    await store.close()


async def test_memory(opener: Opener, tmp_path: Path) -> None:
    store = opener("ram:", MIB)
    assert store.capabilities.volatile
    other = opener("ram:", MIB)
    assert store.write_now(0, [b"x" * 512])
    into = memoryview(bytearray(512))
    await other.read(0, into)
    assert into == bytes(512)
    assert os.listdir(tmp_path) == []
    await store.close()
    await other.close()


@pytest.mark.parametrize(
    ("path", "size_bytes", "message"),
    [
        ("ram:", None, "needs a size"),
        ("ram:", 1000, "not a multiple"),
        ("ram:x", MIB, "nothing may follow"),
        ("delay:50:ram:", MIB, "'50' is not like '50ms'"),
        ("delay:-1ms:ram:", MIB, "is not like '50ms'"),
        ("delay:50ms", MIB, None),
        ("error:0:ram:", MIB, "'0' is not like '1/100'"),
        ("error:1/0:ram:", MIB, "'1/0' is not like '1/100'"),
    ],
)
def test_bad_schemes(
    opener: Opener, path: str, size_bytes: int | None, message: str | None
) -> None:
    error = refused(opener, path, size_bytes)
    assert error.fault is StorageFault.INVALID
    if message is not None:
        assert message in str(error)
        assert path in str(error)


async def test_filters(opener: Opener, tmp_path: Path) -> None:
    store = opener("error:1/2:delay:0ms:a.img", MIB)
    assert isinstance(store, ErrorStore)
    assert isinstance(store.inner, DelayStore)
    assert isinstance(store.inner.inner, RawStore)
    await store.write(0, [b"f" * 512])
    with pytest.raises(StorageError):
        await store.write(0, [b"g" * 512])
    await store.close()
    assert (tmp_path / "a.img").read_bytes()[:513] == b"f" * 512 + b"\0"


async def test_a_file_named_like_a_scheme(opener: Opener, tmp_path: Path) -> None:
    for path in ("./ram:", "delay", "other:x"):
        store = opener(path, MIB)
        assert isinstance(store, RawStore)
        assert not store.capabilities.volatile
        await store.close()
    assert set(os.listdir(tmp_path)) == {"ram:", "delay", "other:x"}


@pytest.mark.parametrize(
    ("path", "resolved", "volatile"),
    [
        ("a.img", "/etc/x/a.img", False),
        ("/b/a.img", "/b/a.img", False),
        ("ram:", "ram:", True),
        ("./ram:", "/etc/x/ram:", False),
        ("delay:5ms:a.img", "delay:5ms:/etc/x/a.img", False),
        ("error:1/9:delay:5ms:ram:", "error:1/9:delay:5ms:ram:", True),
    ],
)
def test_paths_without_opening(path: str, resolved: str, volatile: bool) -> None:
    assert resolve_path(path, Path("/etc/x")) == resolved
    assert is_volatile(path) is volatile


async def test_what_a_file_system_prefers(opener: Opener) -> None:
    store = opener("a.img", MIB, block_size=4096)
    assert store.capabilities.physical_block_bytes == 4096
    assert store.capabilities.deallocate_granularity_bytes % 4096 == 0
    await store.close()


@pytest.mark.parametrize("name", ["a.img", "a.vhd", "a.vhdx"])
async def test_a_file_system_is_asked_whether_it_anchors(
    opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked: list[Path] = []

    def can_anchor(fd: int, directory: Path) -> bool:
        asked.append(directory)
        return True

    monkeypatch.setattr(module, "can_anchor", can_anchor)
    monkeypatch.setattr(module, "writes_elsewhere", lambda fd: False)
    store = opener(name, 8 * MIB)
    assert store.capabilities.anchors
    await store.close()
    assert asked == [tmp_path]
    # An image replaces its own metadata; a raw file has none.
    monkeypatch.setattr(module, "writes_elsewhere", lambda fd: True)
    store = opener(name, 8 * MIB)
    assert store.capabilities.anchors is (name == "a.img")
    await store.close()
    monkeypatch.setattr(module, "can_anchor", lambda fd, directory: False)
    store = opener(name, 8 * MIB)
    assert not store.capabilities.anchors
    await store.close()


async def test_a_link_is_asked_where_the_file_is(
    opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opener("a.img", MIB).close()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "b.img").symlink_to(tmp_path / "a.img")
    asked: list[Path] = []
    monkeypatch.setattr(module, "can_anchor", lambda fd, directory: asked.append(directory))
    await opener("links/b.img", MIB).close()
    assert asked == [tmp_path]


async def test_memory_anchors_nothing(opener: Opener) -> None:
    store = opener("ram:", MIB)
    assert not store.capabilities.anchors
    await store.close()


def test_the_file_that_a_disk_is_in(tmp_path: Path) -> None:
    assert image_path("disks/a.img", tmp_path) == tmp_path / "disks/a.img"
    assert image_path("delay:5ms:error:1/9:/x/a.vhdx", tmp_path) == Path("/x/a.vhdx")
    assert image_path("ram:", tmp_path) is image_path("delay:5ms:ram:", tmp_path) is None


@pytest.mark.parametrize("suffix", [".vhd", ".vhdx", ".img"])
@pytest.mark.parametrize("kind", [Kind.FIXED, Kind.DYNAMIC])
async def test_a_missing_image_is_created_in_the_format_of_its_name(
    tmp_path: Path, suffix: str, kind: Kind
) -> None:
    name = f"disk{suffix}"
    for _ in range(2):  # created, then opened
        store = open_store(
            name, size_bytes=9 * MIB, read_only=False, base=tmp_path, block_size=512, kind=kind
        )
        assert store.size_bytes == 9 * MIB
        await store.close()
    image = open_image(tmp_path / name, read_only=True)
    (description,) = describe_chain(image)
    image.close_blocking()
    assert description.format.value == suffix
    assert description.kind is kind
    assert (description.allocated_bytes >= 9 * MIB) == (kind is Kind.FIXED)
