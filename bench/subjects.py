"""The servers under measurement, each over images of its own, equal and in the page cache."""

import contextlib
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.support.images import GIB, MIB
from tests.support.process import run_tool
from tests.support.server import ROOT, Server, Setup, serving
from tests.support.tgtd import tgtd

IMAGE_BYTES = GIB
DISKS = 2
SLOW_DELAY = "50ms"


@dataclass(frozen=True)
class Subject:
    """A running server; `slow_lun` is a disk whose reads take long, if it has one.

    `fresh` starts another one of the same kind that has not done anything yet. Others of the tree
    at `source` start with `prefix` before their command, and have their images in `home`.
    """

    name: str
    server: Server
    first_lun: int
    images: tuple[Path, ...]
    slow_lun: int | None = None
    fresh: Callable[[], AbstractContextManager["Subject"]] | None = None
    source: Path = ROOT
    prefix: tuple[str, ...] = ()
    home: Path = Path()

    @property
    def pid(self) -> int:
        return self.server.process.pid

    def url(self, disk: int = 0) -> str:
        return self.server.url(self.first_lun + disk)

    def settle(self) -> None:
        """Write back what the last load left dirty and have all of it in the cache again."""
        for image in self.images:
            with image.open("rb") as file:
                os.fsync(file.fileno())
                while file.read(8 * MIB):
                    pass


def filled_image(path: Path) -> Path:
    """All blocks allocated and the same in every image."""
    chunk = random.Random(1).randbytes(8 * MIB)
    with path.open("wb") as file:
        for _ in range(IMAGE_BYTES // len(chunk)):
            file.write(chunk)
    return path


def _images(directory: Path) -> tuple[Path, ...]:
    directory.mkdir()
    return tuple(filled_image(directory / f"disk{number}.img") for number in range(DISKS))


def _pinned(pin: str) -> list[str]:
    return ["taskset", "-c", pin] if pin else []


@contextlib.contextmanager
def bare_server(name: str, directory: Path, *, source: Path) -> Iterator[Subject]:
    """A server of one small disk in memory."""
    with tempfile.TemporaryDirectory(dir=directory) as home:
        setup = Setup({"disk": {"path": "ram:", "size": MIB}})
        with serving(setup, Path(home), source=source) as server:
            yield Subject(name, server, 0, ())


@contextlib.contextmanager
def this_server(name: str, directory: Path, *, source: Path, pin: str) -> Iterator[Subject]:
    """The server of the tree at `source`."""
    images = _images(directory)
    disks: dict[str, dict[str, object]] = {
        f"disk{number}": {"path": image} for number, image in enumerate(images)
    }
    slow = directory / "slow.img"
    disks["slow"] = {"path": f"delay:{SLOW_DELAY}:{slow}", "size": IMAGE_BYTES}
    with serving(Setup(disks), directory, command=_pinned(pin), source=source) as server:
        fresh = partial(bare_server, name, directory, source=source)
        yield Subject(
            name,
            server,
            0,
            images,
            slow_lun=DISKS,
            fresh=fresh,
            source=source,
            prefix=tuple(_pinned(pin)),
            home=directory,
        )


@contextlib.contextmanager
def tgtd_server(directory: Path, *, pin: str) -> Iterator[Subject]:
    """Debian's tgtd."""
    images = _images(directory)
    with tgtd(images, command=_pinned(pin)) as server:
        yield Subject("tgtd", server, 1, images)


@contextlib.contextmanager
def checked_out(git_ref: str, directory: Path) -> Iterator[Path]:
    """An older version of this tree, gone again afterwards."""
    git = ["git", "-C", str(ROOT), "worktree"]
    run_tool([*git, "add", "--detach", directory, git_ref])
    try:
        yield directory
    finally:
        subprocess.run([*git, "remove", "--force", str(directory)], check=False)


def python_version() -> str:
    return f"{sys.implementation.name} {sys.version.split()[0]}"
