"""New VHDs, as QEMU and libvhdi see them."""

import json
from pathlib import Path
from uuid import uuid4

import pytest

from pyiscsi_target.storage.base import StorageError
from pyiscsi_target.storage.chain import ParentPaths
from pyiscsi_target.storage.vhd_create import NewVhd, ParentOfNew, new_dynamic, new_fixed
from pyiscsi_target.storage.vhd_format import DYNAMIC_MAX_BYTES, DiskType
from pyiscsi_target.storage.vhd_image import read_layout
from tests.support.process import run_tool

MIB = 1 << 20
SIZES = (512, 5 * MIB + 512, 100 * MIB, 1 << 40)


def write(path: Path, new: NewVhd) -> Path:
    with path.open("wb") as file:
        file.truncate(new.file_bytes)
        for offset, data in new.pieces:
            file.seek(offset)
            file.write(data)
    return path


def qemu_size(path: Path) -> int:
    done = run_tool(["qemu-img", "info", "-f", "vpc", "--output=json", path])
    size: int = json.loads(done.stdout)["virtual-size"]
    return size


@pytest.mark.parametrize("size_bytes", SIZES)
def test_qemu_sees_the_size_of_a_fixed_disk(tmp_path: Path, size_bytes: int) -> None:
    path = write(tmp_path / "f.vhd", new_fixed(size_bytes))
    assert qemu_size(path) == size_bytes
    assert path.stat().st_size == size_bytes + 512


@pytest.mark.parametrize("size_bytes", [*SIZES, DYNAMIC_MAX_BYTES])
@pytest.mark.parametrize("block_bytes", [512 << 10, 2 * MIB])
def test_qemu_sees_the_size_of_a_dynamic_disk(
    tmp_path: Path, size_bytes: int, block_bytes: int
) -> None:
    path = write(tmp_path / "d.vhd", new_dynamic(size_bytes, block_bytes))
    assert qemu_size(path) == size_bytes


def test_a_child_is_read_back(tmp_path: Path) -> None:
    identity = uuid4()
    paths = ParentPaths((".\\p.vhd",), ("/somewhere/p.vhd",))
    parent = ParentOfNew("p.vhd", identity, 77, paths)
    raw = write(tmp_path / "c.vhd", new_dynamic(9 * MIB, parent=parent)).read_bytes()
    layout = read_layout(lambda offset, length: raw[offset : offset + length], len(raw), "c.vhd")
    assert layout.footer.disk_type is DiskType.DIFFERENCING
    assert layout.header is not None
    assert layout.header.parent_unique_id == identity
    assert layout.header.parent_time_stamp == 77
    assert layout.header.parent_name == "p.vhd"
    assert layout.locator_data[b"W2ru"].decode("utf-16-le") == ".\\p.vhd"
    assert list(layout.table) == [0xFFFFFFFF] * 5
    assert layout.copy_intact
    assert layout.footer_offset == len(raw) - 512 >= layout.data_end_bytes


@pytest.mark.parametrize(
    ("size_bytes", "block_bytes"),
    [
        (0, 2 * MIB),
        (513, 2 * MIB),
        (DYNAMIC_MAX_BYTES + 512, 2 * MIB),
        (MIB, 3 * MIB),
        (MIB, 256 << 10),
        (MIB, 512 * MIB),
    ],
)
def test_what_cannot_be_made(size_bytes: int, block_bytes: int) -> None:
    with pytest.raises(StorageError):
        new_dynamic(size_bytes, block_bytes)


def test_two_disks_have_two_identities() -> None:
    assert new_fixed(MIB) != new_fixed(MIB)
