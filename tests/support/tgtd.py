"""Debian's tgtd beside this server, with a control port of its own.

tgtd ignores SIGTERM while it has targets, so it is ended by SIGKILL to its pid. Its LUN 0 is a
controller; disks start at 1.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.process import child, run_tool, tool
from tests.support.server import TARGET, Server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _control(number: int, *arguments: str | Path) -> bool:
    command = ["tgtadm", "-C", str(number), "--lld", "iscsi", *arguments]
    return run_tool(command, check=False).returncode == 0


@contextlib.contextmanager
def tgtd(images: Sequence[Path], *, command: Sequence[str] = ()) -> Iterator[Server]:
    """A ready tgtd whose LUN 1, 2, ... are the images."""
    port = _free_port()
    number = os.getpid() % 30000 + 100
    full = [*command, tool("tgtd"), "-f", "-C", str(number), "--iscsi", f"portal=127.0.0.1:{port}"]
    with child(full) as process:
        new_target = ("--op", "new", "--mode", "target", "--tid", "1", "-T", TARGET)
        deadline = time.monotonic() + 30
        # tgtd reports nothing when it is ready: each try is a process of its own, bounded in time.
        while not _control(number, *new_target):
            if not process.running or time.monotonic() > deadline:
                raise AssertionError(f"tgtd does not answer:\n{process.output}")
        for lun, image in enumerate(images, 1):
            unit = ("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", str(lun))
            assert _control(number, *unit, "-b", image), f"tgtd refuses {image}"
        assert _control(number, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
        yield Server(process, [f"127.0.0.1:{port}"])
