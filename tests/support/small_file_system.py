"""A small file system of its own, so that it can be full, where this may be made."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.images import MIB, sparse_image

_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-m", "0"),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
}
_LEAST_BYTES = {"ext4": 48 * MIB, "xfs": 300 * MIB, "btrfs": 120 * MIB}


@contextlib.contextmanager
def small_file_system(directory: Path, kind: str = "ext4") -> Iterator[Path]:
    """Mounted below the directory; skips the test where that is not possible."""
    command = _MAKE[kind]
    if shutil.which(command[0]) is None or not hasattr(os, "geteuid") or os.geteuid():
        pytest.skip(f"no {kind} can be made here")
    image = sparse_image(directory / f"{kind}.fs", _LEAST_BYTES[kind])
    mounted = directory / f"mounted-{kind}"
    mounted.mkdir()
    subprocess.run([*command, str(image)], check=True, capture_output=True)
    done = subprocess.run(
        ["mount", "-o", "loop", str(image), str(mounted)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def fill_up(directory: Path) -> None:
    """Leave no space in the file system of the directory."""
    with open(directory / "filler", "wb", buffering=0) as file:
        for length in (4 * MIB, 64 * 1024, 4096):
            with contextlib.suppress(OSError):
                while file.write(b"f" * length) == length:
                    pass
        with contextlib.suppress(OSError):
            os.fsync(file.fileno())
