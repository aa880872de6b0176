"""Stores on every set of system calls that a platform may have."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyiscsi_target.storage import holes
from pyiscsi_target.storage.base import BackingStore
from pyiscsi_target.storage.open import open_store

NOWAIT = ("RWF_NOWAIT", "RWF_DSYNC")
VECTORED = (*NOWAIT, "preadv", "pwritev")
POSITIONED = (*VECTORED, "pread", "pwrite")
HINTS = ("SEEK_DATA", "SEEK_HOLE", "posix_fadvise", "fdatasync", "memfd_create")


@dataclass(frozen=True)
class Variant:
    """A kind of path on a platform without the `hidden` names of `os`."""

    name: str
    path: str = "disk.img"
    hidden: tuple[str, ...] = ()
    fallocate: bool = True


VARIANTS = (
    Variant("file"),
    Variant("memory", "ram:"),
    Variant("file, no RWF flags", hidden=NOWAIT),
    Variant("file, no vectors", hidden=VECTORED),
    Variant("file, no positions", hidden=POSITIONED),
    Variant("file, no fallocate", fallocate=False),
    Variant("file, no hints", hidden=HINTS),
    Variant("file, nothing", hidden=(*POSITIONED, *HINTS), fallocate=False),
    Variant("memory, no memfd", "ram:", hidden=("memfd_create",)),
    Variant("memory, no vectors", "ram:", hidden=VECTORED),
    Variant("memory, nothing", "ram:", hidden=(*POSITIONED, *HINTS), fallocate=False),
    Variant("slow", "delay:0ms:disk.img"),
)


def hide(monkeypatch: pytest.MonkeyPatch, variant: Variant) -> None:
    """Take away what the variant's platform lacks."""
    for name in variant.hidden:
        monkeypatch.delattr(os, name)
    if not variant.fallocate:
        monkeypatch.setattr(holes, "fallocate", None)


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.name)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Variant:
    """Each variant in turn, with its calls hidden."""
    found: Variant = request.param
    hide(monkeypatch, found)
    return found


class Opener:
    """Opens stores in a directory of the test."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def __call__(
        self,
        path: str = "disk.img",
        size_bytes: int | None = 1 << 20,
        *,
        read_only: bool = False,
        block_size: int = 512,
    ) -> BackingStore:
        return open_store(
            path,
            size_bytes=size_bytes,
            read_only=read_only,
            base=self.base,
            block_size=block_size,
        )


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    return Opener(tmp_path)
