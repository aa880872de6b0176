"""Where a demonstration plays: a server in this process, with one disk, on a free loopback port."""

import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from ..app import Application
from ..client import Portal
from ..server.config import load_config

TARGET = "iqn.2026-11.org.pyiscsi-target:demo"
LUN = 0
_CONFIG = f"""\
[server]
portals = ["127.0.0.1:0"]
state_dir = "state"

[disks.quorum]
path = "quorum.img"
size = "64 MiB"

[targets."{TARGET}"]
luns = {{ {LUN} = "quorum" }}
initiators = ["*"]
"""


class _Errors(logging.Handler):
    """Keeps what the server complains of, and keeps it from the terminal."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@dataclass(frozen=True, slots=True)
class Stage:
    """A server that is ready, and the errors that it has logged so far."""

    app: Application
    portal: Portal
    errors: list[str]


@contextlib.asynccontextmanager
async def stage(directory: Path) -> AsyncIterator[Stage]:
    """A server whose files are in `directory`, drained at the end. Raises StartError."""
    path = directory / "config.toml"
    path.write_text(_CONFIG, encoding="utf-8")
    logger = logging.getLogger(__package__.partition(".")[0])
    errors = _Errors()
    logger.addHandler(errors)
    propagates, logger.propagate = logger.propagate, False
    try:
        app = Application(load_config(path), directory)
        await app.start()
        try:
            yield Stage(app, Portal.parse(app.overview().portals[0]), errors.messages)
        finally:
            await app.drain()
    finally:
        logger.propagate = propagates
        logger.removeHandler(errors)
