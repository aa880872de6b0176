"""`disk resize`, `check`, `repair`, `compact` and `merge`."""

import filecmp
import json
from pathlib import Path

import pytest

from tests.support.disk_commands import disk, done, names, refused, told
from tests.support.images import random_image
from tests.support.process import run_tool

MIB = 1 << 20


def qemu_write(path: Path, *commands: str) -> None:
    arguments = [part for command in commands for part in ("-c", command)]
    run_tool(["qemu-io", "-f", "vpc", *arguments, path])


# resize


@pytest.mark.parametrize("suffix", [".vhd", ".vhdx", ".img"])
def test_resize(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d{suffix}"
    done("create", path, "--size", "10M")
    assert done("resize", path, "3G") == f"{path}: 3 GiB\n"
    assert told(path)["size_bytes"] == 3 << 30
    done("resize", path, "10M")
    assert told(path)["size_bytes"] == 10 * MIB


def test_nothing_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    done("create", path, "--size", "10M")
    qemu_write(path, "write 9M 64k")
    assert "holds data at byte" in refused("resize", path, "5M")
    assert told(path)["size_bytes"] == 10 * MIB


# check and repair


def damage(path: Path, offset: int, data: bytes = bytes(512)) -> None:
    with path.open("r+b") as file:
        file.seek(offset, 0 if offset >= 0 else 2)
        file.write(data)


@pytest.mark.parametrize("suffix", [".vhd", ".vhdx", ".img"])
def test_a_sound_image(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d{suffix}"
    done("create", path, "--size", "10M")
    assert done("check", path) == f"{path}: sound\n"
    report = json.loads(done("check", path, "--json"))
    assert report == {"path": str(path), "sound": True, "findings": []}
    assert done("repair", path) == f"{path}: sound\n"


@pytest.mark.parametrize(("offset", "which"), [(0, "copy of the footer"), (-512, "at the end")])
def test_footers_are_repaired(tmp_path: Path, offset: int, which: str) -> None:
    path = tmp_path / "d.vhd"
    done("create", path, "--size", "10M")
    whole = path.read_bytes()
    damage(path, offset)
    damaged = path.read_bytes()
    result = disk("check", path)
    assert result.exit_code == 1
    assert which in result.stdout
    assert "(disk repair helps)" in result.stdout
    assert path.read_bytes() == damaged
    assert f"{path}: repaired: " in done("repair", path)
    assert path.read_bytes() == whole


def test_what_cannot_be_repaired_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    done("create", path, "--size", "10M")
    damage(path, 512)
    damaged = path.read_bytes()
    for command in ("check", "repair"):
        result = disk(command, path)
        assert result.exit_code == 1
        assert "dynamic disk header at byte 512: the cookie" in result.stdout
        assert result.stdout.count(str(path)) == 1
    assert path.read_bytes() == damaged


def test_bytes_that_tools_read_differently(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    done("create", path, "--size", "10M")
    qemu_write(path, "write -P 7 0 64k")
    raw = path.read_bytes()
    damage(path, raw.index(b"\x07" * 4096) - 512, bytes(2))
    result = disk("check", path)
    assert result.exit_code == 1
    assert "block 0 holds bytes in sectors that its bitmap calls unused" in result.stdout


def test_a_damaged_or_missing_parent(tmp_path: Path) -> None:
    parent, child = tmp_path / "p.vhd", tmp_path / "c.vhd"
    done("create", parent, "--size", "10M")
    done("create", child, "--parent", parent)
    damage(parent, 0)
    result = disk("check", child)
    assert result.exit_code == 1
    assert f"parent {parent}: the copy of the footer" in result.stdout
    parent.unlink()
    result = disk("check", child)
    assert result.exit_code == 1
    assert "its parent 'p.vhd' is missing" in result.stdout


def test_a_missing_image(tmp_path: Path) -> None:
    assert "No such file" in refused("check", tmp_path / "none.vhd")


# compact


def test_compact(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    done("create", path, "--size", "64M")
    qemu_write(path, "write -P 1 0 32M", "write -z 2M 16M", "write -P 2 30M 512")
    before = tmp_path / "before.img"
    done("convert", path, before)
    said = done("compact", path)
    assert "was 32" in said
    assert path.stat().st_size < 17 * MIB
    run_tool(["qemu-img", "compare", "-f", "vpc", "-F", "raw", path, before])
    assert done("check", path) == f"{path}: sound\n"


def test_compact_a_vhdx(tmp_path: Path) -> None:
    path, before = tmp_path / "d.vhdx", tmp_path / "before.img"
    done("create", path, "--size", "64M", "--block-size", "1M")
    commands = ("write -P 1 0 32M", "write -P 0 2M 16M", "write -P 2 30M 512")
    run_tool(["qemu-io", "-f", "vhdx", *(part for text in commands for part in ("-c", text)), path])
    done("convert", path, before)
    done("compact", path)
    assert path.stat().st_size < 25 * MIB  # 16 MiB of data, and header, log, metadata, table
    run_tool(["qemu-img", "check", "-f", "vhdx", path])
    run_tool(["qemu-img", "compare", "-f", "vhdx", "-F", "raw", path, before])


def test_room_that_is_not_in_use_is_found(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    done("create", path, "--size", "64M")
    qemu_write(path, "write -P 1 0 8M")
    table = 1536
    damage(path, table + 4, b"\xff" * 4)
    said = done("check", path)  # no damage
    assert "room for 1 blocks of 2097152 bytes is not in use (disk compact helps)" in said
    done("compact", path)
    assert done("check", path) == f"{path}: sound\n"


@pytest.mark.parametrize(("name", "kind"), [("d.img", "dynamic"), ("d.vhd", "fixed")])
def test_what_has_no_blocks(tmp_path: Path, name: str, kind: str) -> None:
    done("create", tmp_path / name, "--size", "1M", "--kind", kind)
    assert "only dynamic and differencing" in refused("compact", tmp_path / name)


# merge


@pytest.mark.parametrize("suffix", [".vhd", ".vhdx"])
def test_merge(tmp_path: Path, suffix: str) -> None:
    parent, child, source = tmp_path / f"p{suffix}", tmp_path / f"c{suffix}", tmp_path / "s.img"
    random_image(source, 20 * MIB, holes=True)
    done("convert", source, parent)
    done("create", child, "--parent", parent)
    said = done("merge", child)
    assert said == f"{parent}: holds what {child} did\n"
    assert names(tmp_path) == [parent.name, "s.img"]
    done("convert", parent, tmp_path / "t.img")
    assert filecmp.cmp(source, tmp_path / "t.img", shallow=False)


@pytest.mark.parametrize("size", ["24M", "8M"])
@pytest.mark.parametrize("suffix", [".vhd", ".vhdx"])
def test_the_parent_takes_on_the_size(tmp_path: Path, suffix: str, size: str) -> None:
    parent, child = tmp_path / f"p{suffix}", tmp_path / f"c{suffix}"
    done("create", parent, "--size", "16M")
    done("create", child, "--parent", parent)
    done("resize", child, size)
    done("merge", child)
    assert json.loads(done("info", parent, "--json"))["size_bytes"] == int(size[:-1]) * MIB


@pytest.mark.parametrize("offset", [64 << 10, 128 << 10])
def test_headers_are_repaired(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "d.vhdx"
    done("create", path, "--size", "10M")
    damage(path, offset)
    result = disk("check", path)
    assert result.exit_code == 1
    assert f"the header at byte {offset} is damaged" in result.stdout
    assert f"{path}: repaired: the header at byte {offset}" in done("repair", path)
    assert done("check", path) == f"{path}: sound\n"


def test_what_has_no_parent(tmp_path: Path) -> None:
    done("create", tmp_path / "d.vhd", "--size", "1M")
    assert "is not a differencing image" in refused("merge", tmp_path / "d.vhd")
    assert names(tmp_path) == ["d.vhd"]
