"""Image formats beside a raw file: the same data on disks of one server, in turn."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.clients import (
    Client,
    Load,
    perf_random,
    perf_sequential,
    qemu_count,
    qemu_read,
    qemu_write,
)
from bench.scenarios import Figure, Terms, measure
from bench.subjects import Subject, filled_image
from tests.support.images import GIB, KIB, MIB
from tests.support.process import child, run_tool, tool
from tests.support.server import Setup, serving

NEW_BYTES = GIB  # of a disk whose blocks are written for the first time
MIN_FIXED, MIN_GROWING, MIN_FIRST_WRITES = 0.97, 0.9, 0.5


@dataclass(frozen=True)
class Format:
    """A file name, and how its image is made with `disk create` and `disk convert`."""

    title: str
    name: str
    options: tuple[str, ...]
    goal: float | None


RAW = Format("raw", "raw.img", (), None)
FORMATS = (
    Format("VHD, fixed", "fixed.vhd", ("--kind", "fixed"), MIN_FIXED),
    Format("VHD, dynamic", "dynamic.vhd", (), MIN_GROWING),
    Format("VHDX, fixed", "fixed.vhdx", ("--kind", "fixed"), MIN_FIXED),
    Format("VHDX, dynamic", "dynamic.vhdx", (), MIN_GROWING),
)
QEMU_LOADS: tuple[tuple[str, Client, int, int], ...] = (
    ("4 KiB read, 32 in flight", qemu_read, 4 * KIB, 32),
    ("4 KiB write, 32 in flight", qemu_write, 4 * KIB, 32),
    ("1 MiB write, 8 in flight", qemu_write, MIB, 8),
)
LOADS: tuple[tuple[str, Client, int, int], ...] = (
    ("4 KiB random read, 32 in flight", perf_random, 4 * KIB, 32),
    ("1 MiB read, 8 in flight", perf_sequential, MIB, 8),
    ("4 KiB write, 32 in flight", qemu_write, 4 * KIB, 32),
    ("1 MiB write, 8 in flight", qemu_write, MIB, 8),
)


def _disk(subject: Subject, *arguments: object) -> None:
    """Our own command for images."""
    command = [sys.executable, "-m", "pyiscsi_target", "disk", *map(str, arguments)]
    run_tool(command, timeout_s=600, env={"PYTHONPATH": str(subject.source)})


@contextmanager
def _served(subject: Subject, home: Path, images: Sequence[Path]) -> Iterator[Subject]:
    setup = Setup({image.name.replace(".", "-"): {"path": image} for image in images})
    with serving(setup, home, command=subject.prefix, source=subject.source) as server:
        yield Subject(subject.name, server, 0, tuple(images), source=subject.source)


def image_formats(subject: Subject, terms: Terms) -> Iterator[Figure]:
    """Reads and writes of blocks that are allocated, as parts of what the raw disk reaches."""
    with tempfile.TemporaryDirectory(dir=subject.home) as directory:
        home = Path(directory)
        source = filled_image(home / "source.img")
        # All by the same writer: how it writes decides how large the page cache's folios become.
        for kind in (RAW, *FORMATS):
            _disk(subject, "convert", source, home / kind.name, *kind.options)
        source.unlink()
        images = [home / kind.name for kind in (RAW, *FORMATS)]
        with _served(subject, home, images) as served:
            for title, client, block_bytes, depth in LOADS:
                ratios = _ratios(served, client, terms.load(block_bytes, depth), terms.rounds)
                for kind, ratio in zip(FORMATS, ratios, strict=True):
                    yield _figure(f"{kind.title}: {title}, to raw", ratio, kind.goal)


def _ratios(served: Subject, client: Client, load: Load, rounds: int) -> list[float]:
    """For each format the median of its throughput to the raw disk's, before and after it.

    The formats take turns within a round: noise that lasts does not fall on one of them alone.
    """
    ratios: list[list[float]] = [[] for _ in FORMATS]
    for _ in range(rounds):
        before = measure(served, client, load).operations_per_s
        for number, found in enumerate(ratios, start=1):
            its_own = measure(served, client, load, number).operations_per_s
            after = measure(served, client, load).operations_per_s
            found.append(2 * its_own / (before + after))
            before = after
    return [statistics.median(found) for found in ratios]


def _figure(title: str, ratio: float, goal: float | None) -> Figure:
    least = "" if goal is None else f">= {goal}x"
    return Figure(title, f"{ratio:.2f}x", least, None if goal is None else ratio >= goal)


def first_writes(subject: Subject, terms: Terms) -> Iterator[Figure]:
    """1 MiB writes from end to end of a new disk, all of whose blocks are yet to be allocated."""
    new = (
        Format("VHDX, blocks of 32 MiB", "new.vhdx", ("--block-size", "32MiB"), MIN_FIRST_WRITES),
        Format("VHD", "new.vhd", (), None),
    )
    ratios: dict[str, list[float]] = {kind.name: [] for kind in new}
    for _ in range(terms.rounds):
        raw_s = _first_write_s(subject, "new.img", ())
        for kind in new:
            ratios[kind.name].append(raw_s / _first_write_s(subject, kind.name, kind.options))
    for kind in new:
        title = f"{kind.title}: 1 MiB write into new blocks, 8 in flight, to a new raw file"
        yield _figure(title, statistics.median(ratios[kind.name]), kind.goal)


def _first_write_s(subject: Subject, name: str, options: Sequence[str]) -> float:
    with tempfile.TemporaryDirectory(dir=subject.home) as directory:
        image = Path(directory) / name
        _disk(subject, "create", image, "--size", NEW_BYTES, *options)
        with _served(subject, Path(directory), [image]) as served:
            load = Load(MIB, 8, 60)
            # Not zeroes, which formats that can have holes need not write.
            return qemu_count(served.url(), load, NEW_BYTES // MIB, "-w", "--pattern=165")


def beside_qemu(subject: Subject, terms: Terms) -> Iterator[Figure]:
    """For reference: the same image served by qemu-nbd, with the same client."""
    with tempfile.TemporaryDirectory(dir=subject.home) as directory:
        home = Path(directory)
        raw = filled_image(home / "raw.img")
        images = [home / "ours.vhdx", home / "theirs.vhdx"]
        for image in images:
            _disk(subject, "convert", raw, image)
        raw.unlink()
        socket = home / "nbd"
        address = f"nbd+unix:///?socket={socket}"
        command = [*subject.prefix, tool("qemu-nbd"), "--persistent", "--format=vhdx", "--verbose"]
        with (
            _served(subject, home, images[:1]) as served,
            child([*command, f"--socket={socket}", images[1]], merge=True),
        ):
            _wait_for(socket)
            for title, client, block_bytes, depth in QEMU_LOADS:
                load = terms.load(block_bytes, depth)
                ratios = []
                for _ in range(terms.rounds):
                    theirs = client(address, load).operations_per_s
                    ratios.append(client(served.url(), load).operations_per_s / theirs)
                ratio = statistics.median(ratios)
                yield _figure(f"VHDX, dynamic: {title}, to qemu-nbd", ratio, None)


def _wait_for(socket: Path) -> None:
    while not socket.exists():  # qemu-nbd says nothing when it is ready
        time.sleep(0.01)


FORMAT_FIGURES: dict[str, Callable[[Subject, Terms], Iterator[Figure]]] = {
    "image-formats": image_formats,
    "first-writes": first_writes,
    "beside-qemu": beside_qemu,
}
