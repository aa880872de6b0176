"""`disk create`, `info` and `convert`: what they make, say and leave behind."""

import json
import os
import random
import signal
from pathlib import Path

import pytest

from pyiscsi_target.cli import disk_convert
from pyiscsi_target.cli.disk_info import bar
from pyiscsi_target.storage.base import BackingStore, StorageError, StorageFault
from tests.support.disk_commands import done, names, refused, told
from tests.support.process import run_tool

MIB = 1 << 20


# create


@pytest.mark.parametrize("suffix", [".vhd", ".vhdx", ".img", ""])
@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
def test_create(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"disk{suffix}"
    image_format = suffix[1:] if suffix.startswith(".v") else "raw"
    said = done("create", path, "--size", "10MiB", "--kind", kind)
    assert said == f"{path}: {kind} {image_format}, 10 MiB\n"
    report = told(path)
    assert report["format"] == image_format
    assert report["kind"] == kind
    assert report["size_bytes"] == 10 * MIB
    assert report["chain"] == []
    qemu = {"vhd": "vpc", "vhdx": "vhdx", "raw": "raw"}[image_format]
    shown = run_tool(["qemu-img", "info", "-f", qemu, "--output=json", path]).stdout
    assert json.loads(shown)["virtual-size"] == 10 * MIB


@pytest.mark.parametrize("suffix", [".vhd", ".vhdx"])
def test_create_a_child(tmp_path: Path, suffix: str) -> None:
    parent, child = tmp_path / f"golden{suffix}", tmp_path / f"child{suffix}"
    done("create", parent, "--size", "10MiB")
    done("create", child, "--parent", parent)
    report = told(child)
    assert report["kind"] == "differencing"
    assert report["size_bytes"] == 10 * MIB
    assert isinstance(report["chain"], list)
    assert [one["path"] for one in report["chain"]] == [str(parent)]
    assert "golden" in done("info", child)


def test_sizes_of_blocks_and_sectors(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    done("create", path, "--size", "1G", "--block-size", "4M", "--sector-size", 4096)
    report = told(path)
    assert (report["block_bytes"], report["sector_bytes"]) == (4 * MIB, 4096)


def test_the_format_in_place_of_the_name(tmp_path: Path) -> None:
    done("create", tmp_path / "disk.bin", "--size", "10M", "--format", "vhdx")
    assert (tmp_path / "disk.bin").read_bytes().startswith(b"vhdxfile")


def test_nothing_is_overwritten_but_by_force(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    path.write_bytes(b"precious")
    assert "is there already" in refused("create", path, "--size", "1M")
    assert path.read_bytes() == b"precious"
    done("create", path, "--size", "1M", "--force")
    assert told(path)["size_bytes"] == MIB


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "how large?"),
        (("--size", "-1"), "'-1' is not a size"),
        (("--size", "many"), "'many' is not a size"),
        (("--kind", "differencing"), "needs a --parent"),
        (("--kind", "fixed", "--size", "1M", "--parent", "p.vhd"), "has no parent"),
        (("--parent", "p.vhdx"), "the format of its parent"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in refused("create", tmp_path / "d.vhd", *arguments, status=2)
    assert names(tmp_path) == []


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    assert "sectors of 512" in refused("create", path, "--size", "1M", "--sector-size", 4096)
    assert "No such file" in refused("create", path, "--parent", tmp_path / "none.vhd")
    assert "2040" not in refused("create", path, "--size", "3TiB")
    assert names(tmp_path) == []


# info


def test_the_map_is_darker_where_there_is_more(tmp_path: Path) -> None:
    assert bar([0.0, 0.001, 0.3, 0.5, 0.51, 1.0]) == " ░▒▒▓█"
    path = tmp_path / "d.vhd"
    done("create", path, "--size", "256MiB")
    run_tool(["qemu-io", "-f", "vpc", "-c", "write 64M 64M", path])
    shares = told(path)["mapped"]
    assert shares == [0.0] * 16 + [1.0] * 16 + [0.0] * 32
    said = done("info", path)
    assert "[" + " " * 16 + "█" * 16 + " " * 32 + "] 25% mapped" in said
    assert "dynamic" in said
    assert "256 MiB (268435456 bytes)" in said


def test_a_damaged_image_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "d.vhd"
    path.write_bytes(bytes(4096))
    assert f"{path}: footer at byte 3584: the cookie" in refused("info", path)


# convert


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A raw image with data and holes."""
    path = tmp_path / "source.img"
    with path.open("wb") as file:
        file.truncate(12 * MIB)
        for at in (0, 5 * MIB + 512, 11 * MIB):
            file.seek(at)
            file.write(random.Random(at).randbytes(MIB))
    return path


def test_a_round_through_all_formats_and_kinds(source: Path, tmp_path: Path) -> None:
    before = source
    for number, (suffix, kind) in enumerate(
        [(".vhd", "dynamic"), (".vhdx", "dynamic"), (".vhd", "fixed"), (".vhdx", "fixed")]
    ):
        after = tmp_path / f"{number}{suffix}"
        said = done("convert", before, after, "--kind", kind)
        assert said == f"{after}: {kind} {suffix[1:]}, the same as {before}\n"
        before = after
    last = tmp_path / "last.img"
    done("convert", before, last)
    assert last.read_bytes() == source.read_bytes()
    assert last.stat().st_blocks * 512 < 6 * MIB
    assert len(names(tmp_path)) == 6


def test_a_child_becomes_whole(source: Path, tmp_path: Path) -> None:
    parent, child, copy = (tmp_path / f"{name}.vhd" for name in ("parent", "child", "copy"))
    done("convert", source, parent)
    done("create", child, "--parent", parent)
    done("convert", child, copy)
    parent.unlink()
    run_tool(["qemu-img", "compare", "-f", "vpc", "-F", "raw", copy, source])


def test_a_raw_file_that_ends_within_a_sector(tmp_path: Path) -> None:
    (tmp_path / "odd.img").write_bytes(b"x" * 1000)
    done("convert", tmp_path / "odd.img", tmp_path / "d.vhd")
    assert told(tmp_path / "d.vhd")["size_bytes"] == 1024
    done("convert", tmp_path / "d.vhd", tmp_path / "even.img")
    assert (tmp_path / "even.img").read_bytes() == b"x" * 1000 + bytes(24)


def test_convert_overwrites_only_by_force(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.vhd"
    target.write_bytes(b"precious")
    assert "is there already" in refused("convert", source, target)
    assert target.read_bytes() == b"precious"
    done("convert", source, target, "--force")
    assert told(target)["size_bytes"] == 12 * MIB


def test_a_copy_that_differs_is_no_copy(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def copy_badly(disk: BackingStore, copy: BackingStore, progress: object) -> None:
        await copy.write(3 * MIB, (b"no" * 256,))

    monkeypatch.setattr(disk_convert, "copy_disk", copy_badly)
    assert "the copy differs" in refused("convert", source, tmp_path / "t.vhd")
    assert names(tmp_path) == ["source.img"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_cancelled_conversion_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    async def be_killed(disk: BackingStore, copy: BackingStore, progress: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(disk_convert, "verify_copy", be_killed)
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:  # the tests themselves run under nohup
        signal.signal(number, signal.SIG_DFL)
    try:
        assert "Aborted" in refused("convert", source, tmp_path / "t.vhdx")
    finally:
        signal.signal(number, before)
    assert names(tmp_path) == ["source.img"]


def test_a_failing_conversion_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(disk: BackingStore, copy: BackingStore, progress: object) -> None:
        raise StorageError(StorageFault.OUT_OF_SPACE, "it is full")

    monkeypatch.setattr(disk_convert, "copy_disk", fail)
    assert "it is full" in refused("convert", source, tmp_path / "t.vhd")
    assert names(tmp_path) == ["source.img"]
