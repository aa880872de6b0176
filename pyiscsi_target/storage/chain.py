"""From a differencing image to its parent, and on: where parents lie, and chains that never end.

Children name their parents by paths, often those of another host. This module must not know how
an image stores them, nor what it holds.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from .base import StorageError, StorageFault

MAX_DEPTH = 64  # files in a chain

_DRIVE = re.compile(r"(?:\\\\[?.]\\)?[A-Za-z]:[\\/]")  # C:\, \\?\C:\


@dataclass(frozen=True, slots=True)
class ParentPaths:
    """How a child spells its parent's path, the best spelling of each kind first."""

    relative: tuple[str, ...] = ()
    absolute: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The parent's file name, for messages; "?" where the child names none."""
        return next((_file_name(text) for text in (*self.relative, *self.absolute)), "?")


class Chain:
    """An image and the children through which it was reached.

    `path` is the image. A file is known by its device and number, whatever its name.
    """

    __slots__ = ("_seen", "path")

    def __init__(self, path: Path, seen: tuple[tuple[int, int], ...] = ()) -> None:
        self.path = path
        self._seen = (*seen, _identity(path))

    @property
    def depth(self) -> int:
        """How many files the chain has so far."""
        return len(self._seen)

    def to_parent(self, paths: ParentPaths) -> "Chain":
        """The chain with the parent that `paths` names.

        Relative spellings count from the folder of the child, then of the file that it links to.
        Absolute ones are tried as they are where this host can mean the same by them; at last a
        file of the parent's name beside the child. The first that exists is the parent.
        Raises StorageError (MISSING, INVALID) naming child and parent.
        """
        if self.depth >= MAX_DEPTH:
            message = f"{self.path}: more than {MAX_DEPTH} files in the chain of parents"
            raise StorageError(StorageFault.INVALID, message)
        tried: list[Path] = []
        for candidate in _candidates(self.path, paths):
            if candidate in tried:
                continue
            tried.append(candidate)
            if os.path.isfile(candidate) and _identity(candidate) != self._seen[-1]:
                return self._descend(candidate)
        where = ", ".join(map(str, tried)) or "nowhere: no path is recorded"
        message = f"{self.path}: its parent {paths.name!r} is missing; looked for {where}"
        raise StorageError(StorageFault.MISSING, message)

    def _descend(self, parent: Path) -> "Chain":
        if _identity(parent) in self._seen:
            message = f"{self.path}: its parent {parent} is a child of it"
            raise StorageError(StorageFault.INVALID, message)
        return Chain(parent, self._seen)


def paths_between(child: Path, parent: Path) -> ParentPaths:
    """How a new child is to spell its parent's path, as Windows and this host understand it.

    Raises StorageError (INVALID) where images cannot record it, as UTF-16.
    """
    absolute = Path(os.path.abspath(parent))
    if any("\ud800" <= letter <= "\udfff" for letter in f"{absolute}{child}"):
        message = f"{os.fsencode(parent)!r} is no text, so an image cannot record it as its parent"
        raise StorageError(StorageFault.INVALID, message)
    try:
        relative = os.path.relpath(absolute, Path(os.path.abspath(child)).parent)
    except ValueError:  # Windows: on another drive
        return ParentPaths((), (str(absolute),))
    backslashed = str(PureWindowsPath(*PurePosixPath(Path(relative).as_posix()).parts))
    prefix = "" if backslashed.startswith("..") else ".\\"
    return ParentPaths((prefix + backslashed,), (str(absolute),))


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _candidates(child: Path, paths: ParentPaths) -> Iterator[Path]:
    folders = tuple(dict.fromkeys((child.absolute().parent, child.resolve().parent)))
    for text in paths.relative:
        for folder in folders:
            yield _plain(folder / _host_path(text))
    for text in paths.absolute:
        path = _host_path(text)
        if path.is_absolute():
            yield _plain(path)
    for text in (*paths.relative, *paths.absolute):
        for folder in folders:
            yield folder / _file_name(text)


def _plain(path: Path) -> Path:
    return Path(os.path.normpath(path))


def _host_path(text: str) -> Path:
    """The path in this host's spelling; one with a drive letter means nothing but on Windows."""
    if os.name == "nt" or "\\" not in text:
        return Path(text)
    if _DRIVE.match(text) or text.startswith("\\\\"):
        return Path(_file_name(text))
    return Path(text.replace("\\", "/"))


def _file_name(text: str) -> str:
    return PureWindowsPath(text).name or text
