"""New images of every format and kind."""

from pathlib import Path

import pytest

from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.create import ImageFormat, NewImage, create_image, format_of
from pyiscsi_target.storage.create_child import create_child
from pyiscsi_target.storage.open import open_image
from pyiscsi_target.storage.vhdx_create import Kind

MIB = 1 << 20
SIZE = 9 * MIB
WHOLE = [
    NewImage(ImageFormat.RAW, Kind.FIXED, SIZE),
    NewImage(ImageFormat.RAW, Kind.DYNAMIC, SIZE),
    NewImage(ImageFormat.VHD, Kind.FIXED, SIZE),
    NewImage(ImageFormat.VHD, Kind.DYNAMIC, SIZE),
    NewImage(ImageFormat.VHD, Kind.DYNAMIC, SIZE, block_bytes=MIB),
    NewImage(ImageFormat.VHDX, Kind.FIXED, SIZE),
    NewImage(ImageFormat.VHDX, Kind.DYNAMIC, SIZE),
    NewImage(ImageFormat.VHDX, Kind.DYNAMIC, SIZE, block_bytes=4 * MIB, sector_bytes=4096),
]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def name(image: NewImage) -> str:
    return f"{image.format.name.lower()} {image.kind.value} {image.block_bytes}"


@pytest.mark.parametrize("image", WHOLE, ids=name)
async def test_a_new_image_is_a_disk_of_zeroes(tmp_path: Path, image: NewImage) -> None:
    path = tmp_path / f"disk{image.format.value}"
    create_image(path, image)
    disk = open_image(path, read_only=False)
    assert disk.size_bytes == SIZE
    into = memoryview(bytearray(b"x" * SIZE))
    await disk.read(0, into)
    assert into == bytes(SIZE)
    await disk.write(SIZE - 4096, (b"y" * 4096,))
    await disk.close()
    taken = path.stat().st_blocks * 512
    assert taken >= SIZE if image.kind is Kind.FIXED else taken < 8 * MIB
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize(
    "image",
    [
        NewImage(ImageFormat.RAW, Kind.DIFFERENCING, SIZE),
        NewImage(ImageFormat.RAW, Kind.DYNAMIC, SIZE, block_bytes=MIB),
        NewImage(ImageFormat.RAW, Kind.DYNAMIC, 0),
        NewImage(ImageFormat.RAW, Kind.DYNAMIC, 513),
        NewImage(ImageFormat.VHD, Kind.FIXED, SIZE, block_bytes=MIB),
        NewImage(ImageFormat.VHD, Kind.DYNAMIC, SIZE, sector_bytes=4096),
        NewImage(ImageFormat.VHD, Kind.DYNAMIC, 5 << 40),
        NewImage(ImageFormat.VHD, Kind.FIXED, 17 << 40),
        NewImage(ImageFormat.VHD, Kind.DYNAMIC, SIZE, block_bytes=3 * MIB),
        NewImage(ImageFormat.VHD, Kind.DIFFERENCING, SIZE),
        NewImage(ImageFormat.VHDX, Kind.DIFFERENCING, SIZE),
        NewImage(ImageFormat.VHDX, Kind.DYNAMIC, SIZE, block_bytes=3 * MIB),
        NewImage(ImageFormat.VHDX, Kind.DYNAMIC, SIZE, sector_bytes=2048),
    ],
    ids=name,
)
def test_what_cannot_be_leaves_nothing(tmp_path: Path, image: NewImage) -> None:
    path = tmp_path / "disk"
    with pytest.raises(StorageError) as caught:
        create_image(path, image)
    assert caught.value.fault is StorageFault.INVALID
    assert str(caught.value).startswith(f"{path}: ")
    assert names(tmp_path) == []


@pytest.mark.parametrize("image", WHOLE[2:], ids=name)
async def test_children_of_children(tmp_path: Path, image: NewImage) -> None:
    suffix = image.format.value
    paths = [tmp_path / f"{number}{suffix}" for number in range(3)]
    create_image(paths[0], image)
    expected = bytearray(SIZE)
    for number, path in enumerate(paths):
        if number:
            create_child(path, paths[number - 1])
        disk = open_image(path, read_only=False)
        assert disk.size_bytes == SIZE
        await disk.write(number * MIB, (bytes([number + 1]) * MIB,))
        expected[number * MIB : (number + 1) * MIB] = bytes([number + 1]) * MIB
        await disk.close()
    disk = open_image(paths[-1], read_only=True)
    found = memoryview(bytearray(SIZE))
    await disk.read(0, found)
    assert found == expected
    await disk.close()


def test_a_child_has_the_format_of_its_parent_whatever_its_name(tmp_path: Path) -> None:
    create_image(tmp_path / "p.vhd", WHOLE[3])
    create_child(tmp_path / "child.tmp", tmp_path / "p.vhd")
    (tmp_path / "child.tmp").rename(tmp_path / "child.vhd")
    disk = open_image(tmp_path / "child.vhd", read_only=True)
    assert disk.size_bytes == SIZE
    disk.close_blocking()


def test_a_child_of_a_raw_image_cannot_be(tmp_path: Path) -> None:
    create_image(tmp_path / "p.img", WHOLE[1])
    with pytest.raises(StorageError, match="neither a parent nor blocks"):
        create_child(tmp_path / "c.img", tmp_path / "p.img")
    assert names(tmp_path) == ["p.img"]


def test_the_format_goes_by_the_name() -> None:
    formats = {"a.VHD": "VHD", "a.avhd": "VHD", "a.vhdx": "VHDX", "a.avhdx": "VHDX", "a": "RAW"}
    assert {name: format_of(Path(name)).name for name in formats} == formats
