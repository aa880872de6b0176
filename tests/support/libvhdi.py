"""libvhdi reads a VHD: through Debian's Python binding, which only Debian's Python has."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.process import INSTALL_HINT

PYTHON = "/usr/bin/python3"

SCRIPT = """
import sys
import pyvhdi
opened = []
for path in sys.argv[1:]:
    file = pyvhdi.file()
    file.open(path)
    if opened:
        opened[-1].set_parent(file)
    opened.append(file)
child = opened[0]
print(child.get_parent_filename(), child.get_parent_identifier(), file=sys.stderr)
size = child.get_media_size()
for at in range(0, size, 4096):  # longer reads may mix up parent and child
    sys.stdout.buffer.write(child.read_buffer_at_offset(min(4096, size - at), at))
"""


@dataclass(frozen=True)
class Read:
    """What libvhdi says of a disk."""

    content: bytes
    parent_name: str
    parent_id: str


def read_disk(path: Path, *parents: Path) -> Read:
    """All of the disk, through the parents, the next first."""
    try:
        done = subprocess.run([PYTHON, "-c", SCRIPT, path, *parents], capture_output=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{PYTHON} with python3-libvhdi: {INSTALL_HINT}") from None
    said = done.stderr.decode()
    assert done.returncode == 0, f"{said}\n(python3-libvhdi is missing? {INSTALL_HINT})"
    name, identifier = said.rsplit(None, 1)
    return Read(done.stdout, name, identifier)
