"""`pyiscsi-target serve`: run the server that a config file describes, until it is told to stop."""

import asyncio
import contextlib
import logging
import sys
from pathlib import Path

import click
from rich.console import Console

from ..app import Application, StartError
from ..server import logs
from ..server.config import Config, Problem
from .config_file import config_argument, load_or_exit
from .overview_table import print_overview

EXIT_START = 1

_log = logging.getLogger(__name__)


@click.command(short_help="Serve the targets of a config file.")
@config_argument
@click.option(
    "--log-format",
    type=click.Choice(["kv", "json"]),
    default="kv",
    show_default=True,
    help="How log lines on stderr look.",
)
def serve(config: Path, log_format: logs.LogFormat) -> None:
    """Serve the targets of CONFIG until SIGTERM or Ctrl-C, then drain.

    Exit status 0 after a clean stop, 1 where the start fails, 2 where CONFIG has mistakes.
    """
    loaded, warnings = load_or_exit(config)
    logs.configure(log_format)
    _log_warnings(warnings, config)
    # The server owns its sockets and needs add_reader, which Windows' default loop lacks.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        sys.exit(runner.run(_serve(loaded, config.absolute().parent)))


async def _serve(config: Config, base_dir: Path) -> int:
    app = Application(config, base_dir)
    try:
        await app.start()
    except StartError as error:
        logs.log_event(_log, logging.ERROR, "start_failed", error=str(error))
        return EXIT_START
    # Nobody may be left to read it, or no room for it; rich makes a SystemExit of a closed pipe.
    with contextlib.suppress(OSError, SystemExit):
        print_overview(app.overview(), Console())
    await app.run_until_stopped()
    await app.drain()
    return 0


def _log_warnings(warnings: list[Problem], path: Path) -> None:
    for warning in warnings:
        logs.log_event(
            _log,
            logging.WARNING,
            "config_warning",
            file=path,
            line=warning.line,
            key=warning.key,
            message=warning.message,
        )
