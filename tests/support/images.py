"""Disk images for tests and measurements."""

import random
from pathlib import Path

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


def sparse_image(path: Path, size_bytes: int) -> Path:
    """A file that is all hole."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


def random_image(path: Path, size_bytes: int, *, seed: int = 1, holes: bool = False) -> Path:
    """A file of seeded random bytes; with `holes` every third MiB is left out."""
    source = random.Random(seed)
    with path.open("wb") as file:
        for index, offset in enumerate(range(0, size_bytes, MIB)):
            length = min(MIB, size_bytes - offset)
            if holes and index % 3 == 2:
                file.seek(length, 1)
            else:
                file.write(source.randbytes(length))
        file.truncate(size_bytes)
    return path
