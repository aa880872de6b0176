"""`pyiscsi-target disk create`: new images."""

from pathlib import Path

import click

from ..server.config_values import format_size
from ..storage.create import ImageFormat, NewImage, create_image, format_of
from ..storage.create_child import create_child
from ..storage.vhdx_create import Kind
from .disk_options import (
    BLOCK_SIZE,
    FORCE,
    FORMAT,
    FORMATS,
    KINDS,
    SECTOR_SIZE,
    SIZE,
    ImagePath,
    failing_softly,
    warn_of_name,
)


@click.command(short_help="Make a new disk image.")
@click.argument("path", type=ImagePath())
@click.option("--size", type=SIZE, help="Like 20GiB, 20G or 20 GB; a child's is its parent's.")
@click.option(
    "--kind",
    "kind_name",
    type=click.Choice(list(KINDS)),
    help="fixed: all of it allocated. dynamic: grows as it is written (the default). differencing:"
    " what differs from --parent.",
)
@click.option("--parent", type=ImagePath(), help="The image that a differencing one is made of.")
@BLOCK_SIZE
@SECTOR_SIZE
@FORMAT
@FORCE
def create(
    path: Path,
    size: int | None,
    kind_name: str | None,
    parent: Path | None,
    block_size: int,
    sector_size: int,
    format_name: str | None,
    force: bool,
) -> None:
    """Make a new disk image at PATH, complete or not at all.

    Its format goes by its name: .vhd, .vhdx; every other name is a raw image.
    """
    kind = KINDS[kind_name] if kind_name else Kind.DIFFERENCING if parent else Kind.DYNAMIC
    image_format = FORMATS[format_name] if format_name else format_of(path)
    with failing_softly():
        if kind is Kind.DIFFERENCING:
            _require_same_format(parent, image_format)
            assert parent is not None
            create_child(
                path, parent, block_bytes=block_size, size_bytes=size, overwrite=force
            )  # fmt: skip
        else:
            if parent is not None:
                raise click.UsageError(f"a {kind.value} disk has no parent")
            if size is None:
                raise click.UsageError("how large? Say --size")
            image = NewImage(image_format, kind, size, block_size, sector_size)
            create_image(path, image, overwrite=force)
    _say(path, image_format, kind, size)
    warn_of_name(path, image_format)


def _require_same_format(parent: Path | None, image_format: ImageFormat) -> None:
    if parent is None:
        raise click.UsageError("a differencing disk needs a --parent")
    if format_of(parent) is not image_format:
        raise click.UsageError(
            f"a child has the format of its parent, and {parent.name} is"
            f" {format_of(parent).name.lower()}"
        )


def _say(path: Path, image_format: ImageFormat, kind: Kind, size: int | None) -> None:
    size_text = "" if size is None else f", {format_size(size)}"
    click.echo(f"{path}: {kind.value} {image_format.name.lower()}{size_text}")
