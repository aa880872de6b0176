"""What the commands of `disk` have in common: sizes and formats as options, errors, Ctrl-C."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ..server.config_values import parse_size
from ..storage.base import StorageError
from ..storage.create import ImageFormat, format_of
from ..storage.vhdx_create import Kind

EXIT_FAILED = 1
_ENDING = [  # SIGHUP: the terminal is gone
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
]

FORMATS = {image_format.name.lower(): image_format for image_format in ImageFormat}
KINDS = {kind.value: kind for kind in Kind}
FORCE = click.option("--force", is_flag=True, help="Replace what is there, if nobody uses it.")
FORMAT = click.option(
    "--format",
    "format_name",
    type=click.Choice(list(FORMATS)),
    help="In place of what the name says (.vhd, .vhdx, others raw).",
)


def warn_of_name(path: Path, image_format: ImageFormat) -> None:
    """Everything else here goes by the name of a file."""
    named = format_of(path)
    if named is not image_format:
        click.echo(
            f"{path}: warning: holds {image_format.name.lower()}, and its name says"
            f" {named.name.lower()}: other commands and the configuration will take it for that",
            err=True,
        )


class Size(click.ParamType[int]):
    """`20GiB`, `20G`, `1.5 TiB`, or bytes."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, context: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        try:
            text = str(value)
            return parse_size(int(text) if text.isdecimal() else text)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, context)


SIZE = Size()
BLOCK_SIZE = click.option(
    "--block-size", type=SIZE, default=0, metavar="SIZE", help="How much is allocated at once."
)
SECTOR_SIZE = click.option(
    "--sector-size",
    type=SIZE,
    default=0,
    metavar="SIZE",
    help="Logical sectors of a VHDX: 512 or 4096.",
)


class ImagePath(click.Path):
    """The path of an image, which need not be there."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)


@contextmanager
def failing_softly() -> Iterator[None]:
    """A StorageError is a line and exit status 1; other signals end the command as Ctrl-C does."""
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in _ENDING
        if signal.getsignal(number) is not signal.SIG_IGN  # as `nohup` has it
    }
    try:
        yield
    except StorageError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_FAILED)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
