"""Disk images of other tools over iSCSI, and ours under other tools."""

from pathlib import Path

import pytest

from tests.support.disk_commands import done
from tests.support.images import MIB, random_image
from tests.support.libvhdi import read_disk
from tests.support.process import run_tool
from tests.support.qemu import Where, compare, qemu_io, upload
from tests.support.server import Serve, Setup

SIZE = 12 * MIB
QEMU_NAME = {".vhd": "vpc", ".vhdx": "vhdx"}
BY_QEMU = {
    "dynamic.vhd": "subformat=dynamic,force_size=on",
    "rounded.vhd": "subformat=dynamic,force_size=off",
    "fixed.vhd": "subformat=fixed,force_size=on",
    "rounded-fixed.vhd": "subformat=fixed,force_size=off",
    "dynamic.vhdx": "subformat=dynamic",
    "fixed.vhdx": "subformat=fixed",
    "small-blocks.vhdx": "subformat=dynamic,block_size=1M",
    "large-blocks.vhdx": "subformat=dynamic,block_size=64M",
}
OURS = {
    "dynamic.vhd": (),
    "fixed.vhd": ("--kind", "fixed"),
    "half-blocks.vhd": ("--block-size", "512K"),
    "dynamic.vhdx": (),
    "fixed.vhdx": ("--kind", "fixed"),
    "small-blocks.vhdx": ("--block-size", "1M"),
}


def test_images_by_qemu_are_served(tmp_path: Path, serve: Serve) -> None:
    raw = random_image(tmp_path / "raw.img", SIZE, holes=True)
    for name, options in BY_QEMU.items():
        image = tmp_path / name
        kind = QEMU_NAME[image.suffix]
        run_tool(["qemu-img", "convert", "-O", kind, "-o", options, "-f", "raw", raw, image])
    disks = {name.replace(".", "-"): {"path": tmp_path / name} for name in BY_QEMU}
    server = serve(Setup(disks))
    for lun in range(len(BY_QEMU)):
        where = Where(server.url(lun))
        compare(raw, where)  # what a rounded disk has more is zeroes
        qemu_io(where, ["write -P 9 5M 3M", "write -z 1M 4M", "read -P 9 5M 3M"])
    server.process.stop()
    expected = tmp_path / "expected.img"
    expected.write_bytes(raw.read_bytes())
    run_tool(["qemu-io", "-f", "raw", "-c", "write -P 9 5M 3M", "-c", "write -z 1M 4M", expected])
    for name in BY_QEMU:
        kind = QEMU_NAME[Path(name).suffix]
        run_tool(["qemu-img", "compare", "-f", kind, "-F", "raw", tmp_path / name, expected])


def test_our_images_are_written_and_qemu_agrees(tmp_path: Path, serve: Serve) -> None:
    raw = random_image(tmp_path / "raw.img", SIZE, holes=True)
    for name, options in OURS.items():
        done("create", tmp_path / name, "--size", SIZE, *options)
    disks = {name.replace(".", "-"): {"path": tmp_path / name} for name in OURS}
    server = serve(Setup(disks))
    for lun in range(len(OURS)):
        upload(raw, Where(server.url(lun)))
        compare(raw, Where(server.url(lun)))
    server.process.stop()
    for name in OURS:
        image = tmp_path / name
        kind = QEMU_NAME[image.suffix]
        if kind == "vhdx":  # QEMU has no check for VHDs
            run_tool(["qemu-img", "check", "-f", kind, image])
        run_tool(["qemu-img", "compare", "-f", kind, "-F", "raw", image, raw])
        assert done("check", image) == f"{image}: sound\n"


def test_children_of_one_golden_image(tmp_path: Path, serve: Serve) -> None:
    golden = tmp_path / "golden.vhd"
    raw = random_image(tmp_path / "raw.img", SIZE)
    done("convert", raw, golden)
    names = ("one.vhd", "two.vhd")
    for name in names:
        done("create", tmp_path / name, "--parent", golden)
    before = golden.read_bytes()
    server = serve(Setup({name.replace(".", "-"): {"path": tmp_path / name} for name in names}))
    for lun, pattern in enumerate((3, 4)):
        where = Where(server.url(lun))
        compare(raw, where)
        qemu_io(where, [f"write -P {pattern} 100k 3M"])
    server.process.stop()
    assert golden.read_bytes() == before
    content = bytearray(raw.read_bytes())
    for name, pattern in zip(names, (3, 4), strict=True):
        content[100 << 10 : (100 << 10) + 3 * MIB] = bytes([pattern]) * 3 * MIB
        assert read_disk(tmp_path / name, golden).content == content


@pytest.mark.parametrize("suffix", [".vhd", ".vhdx"])
def test_a_missing_image_is_created(tmp_path: Path, serve: Serve, suffix: str) -> None:
    image = tmp_path / f"new{suffix}"
    server = serve(Setup({"new": {"path": image, "size": "1 GiB", "kind": "dynamic"}}))
    qemu_io(Where(server.url(0)), ["write -P 5 1000M 1M"])
    server.process.stop()
    assert image.stat().st_blocks * 512 < 64 * MIB
    run_tool(["qemu-io", "-f", QEMU_NAME[suffix], "-c", "read -P 5 1000M 1M", image])
