"""What a directory holds when a process is killed in it, at any of the changes that it makes.

A killed process leaves what the host's cache holds: so a copy of the directory, made just before a
call that changes something in it, is what dying in that call leaves.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from pyiscsi_target.storage import holes

_CHANGING = (
    "chmod", "ftruncate", "link", "pwrite", "pwritev", "rename", "replace", "unlink", "utime",
    "write",
)  # fmt: skip


@contextmanager
def killed_states(directory: Path, copies: Path) -> Iterator[list[Path]]:
    """Meanwhile, a copy of the directory is made before every change; all of them, in order."""
    found: list[Path] = []

    def before(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            copy = copies / str(len(found))
            found.append(copy)
            with mock.patch.dict(vars(os), originals):
                _copy(directory, copy)
            return call(*arguments, **options)

        return called

    originals = {name: getattr(os, name) for name in _CHANGING if hasattr(os, name)}
    with (
        mock.patch.dict(vars(os), {name: before(call) for name, call in originals.items()}),
        mock.patch.object(holes, "fallocate", _wrapped(before, holes.fallocate)),
    ):
        yield found


def _wrapped(
    before: Callable[[Callable[..., Any]], Callable[..., Any]], call: Callable[..., int] | None
) -> Callable[..., int] | None:
    return None if call is None else before(call)


def _copy(directory: Path, copy: Path) -> None:
    """With modes and times; holes stay holes."""
    copy.mkdir(parents=True)
    for path in directory.iterdir():
        target = copy / path.name
        with path.open("rb") as source, target.open("wb") as file:
            size = os.fstat(source.fileno()).st_size
            file.truncate(size)
            for start, end in holes.data_runs(source.fileno(), 0, size):
                source.seek(start)
                file.seek(start)
                file.write(source.read(end - start))
        shutil.copystat(path, target)
