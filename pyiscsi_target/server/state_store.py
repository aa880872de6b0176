"""Small JSON documents that survive: written whole, replaced at once, checked when read back.

A document is durable when `save` returns, and a crash at any moment leaves the one before or the
one after. The previous generation stays beside it, for the day that the disk loses a bit. Knows
nothing of what the documents mean.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..storage.durability import sync_directory
from .logs import log_event

try:
    import fcntl
except ImportError:  # Windows: no advisory locks, so two servers there are the operator's care
    fcntl = None  # type: ignore[assignment]

Document = dict[str, Any]

FORMAT = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600

_log = logging.getLogger(__name__)


class StateError(Exception):
    """The state directory cannot be used; the message names the file and the reason."""


class StateReader:
    """The documents of one state directory, for looking at only, whoever it belongs to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self, name: str) -> Document | None:
        """The document as last saved; None: there never was one.

        Falls back to the previous generation, and says so loudly, where the last is damaged or
        missing. Raises StateError where a document existed and no generation of it can be read:
        to go on without it would invent new identities and forget reservations.
        """
        damage: list[str] = []
        for path in (self._path(name), self._previous_path(name)):
            try:
                document = _read(path)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                damage.append(f"{path}: {error}")
                continue
            if path != self._path(name):
                why = "; ".join(damage) or "the last generation is missing"
                log_event(_log, logging.ERROR, "state_fallback", document=name, used=path, why=why)
            return document
        if damage:
            raise StateError(f"no generation of {name!r} can be read: {'; '.join(damage)}")
        return None

    def _path(self, name: str) -> Path:
        assert _NAME.fullmatch(name), name
        return self.directory / f"{name}.json"

    def _previous_path(self, name: str) -> Path:
        return self.directory / f"{name}.json.1"


class StateStore(StateReader):
    """The documents of one state directory, which belongs to one server at a time.

    Saves of one document must follow one another; `save` blocks on fsync, so call it in a thread.
    """

    def __init__(self, directory: Path) -> None:
        """Create the directory if need be and lock it. Raises StateError."""
        super().__init__(directory)
        self._lock_descriptor: int | None = None
        try:
            missing = [path for path in (directory, *directory.parents) if not path.exists()]
            directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            for path in missing:
                sync_directory(path.parent)
            self._lock()
        except OSError as error:
            raise StateError(f"state_dir {directory}: {error.strerror or error}") from error

    def close(self) -> None:
        """Give the directory back. Idempotent."""
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)
            self._lock_descriptor = None

    def save(self, name: str, document: Document) -> None:
        """Make `document` the current generation, durably. Raises StateError; then the one before
        still stands."""
        path, previous = self._path(name), self._previous_path(name)
        temporary = self.directory / f"{name}.json.tmp"
        undo: Callable[[], object] | None = None
        try:
            _write_durably(temporary, _encode(document))
            if _is_valid(path):  # a damaged file must not push out the good one before it
                path.replace(previous)
                undo = partial(previous.replace, path)
            elif not path.exists():
                undo = partial(path.unlink, missing_ok=True)
            temporary.replace(path)
            sync_directory(self.directory)
        except OSError as error:
            for tidy in (undo, partial(temporary.unlink, missing_ok=True)):
                with contextlib.suppress(OSError):
                    if tidy is not None:
                        tidy()
            raise StateError(f"{path}: {error.strerror or error}") from error

    def _lock(self) -> None:
        if fcntl is None:
            return
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, _FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StateError(
                f"state_dir {self.directory} is in use by another server; give each its own"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        self._lock_descriptor = descriptor


def _encode(document: Document) -> bytes:
    content = json.dumps(document, sort_keys=True, separators=(",", ":"))
    envelope = {"format": FORMAT, "sha256": _digest(content), "content": document}
    return (json.dumps(envelope, sort_keys=True, indent=1) + "\n").encode()


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _read(path: Path) -> Document:
    """The document in a file. Raises OSError, and ValueError where the file is not sound."""
    try:
        envelope = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(envelope, dict) or envelope.get("format") != FORMAT:
        raise ValueError("not a state document of this version")
    document = envelope.get("content")
    content = json.dumps(document, sort_keys=True, separators=(",", ":"))
    if not isinstance(document, dict) or envelope.get("sha256") != _digest(content):
        raise ValueError("checksum mismatch")
    return document


def _is_valid(path: Path) -> bool:
    try:
        _read(path)
    except (OSError, ValueError):
        return False
    return True


def _write_durably(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # a leftover's mode is not ours to trust
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
