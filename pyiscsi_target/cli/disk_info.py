"""`pyiscsi-target disk info`: what an image is, its parents, and what of it is allocated."""

import asyncio
import json
import shutil
from pathlib import Path

import click

from ..server.config_values import format_size
from ..storage.describe import ImageDescription, describe_chain, mapped_shares
from ..storage.open import open_image
from .disk_options import ImagePath, failing_softly

MAP_CELLS = 64
_SHADES = " ░▒▓█"


@click.command(short_help="Show what an image is, and what of it is allocated.")
@click.argument("path", type=ImagePath())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(path: Path, as_json: bool) -> None:
    """Show format, kind, sizes, parents and allocation of the image at PATH.

    The map counts what the image and its parents hold.
    """
    with failing_softly():
        chain, shares = asyncio.run(_look(path, MAP_CELLS if as_json else _cells()))
        if as_json:
            click.echo(json.dumps(_report(chain, shares), indent=2))
        else:
            _print(chain, shares)


def _cells() -> int:
    """As many as fit into a line."""
    return max(8, min(MAP_CELLS, shutil.get_terminal_size().columns - len("[] 100% mapped") - 1))


async def _look(path: Path, cells: int) -> tuple[list[ImageDescription], list[float]]:
    disk = open_image(path, read_only=True)
    try:
        return describe_chain(disk), await mapped_shares(disk, cells)
    finally:
        await disk.close()


def _report(chain: list[ImageDescription], shares: list[float]) -> dict[str, object]:
    report = _describe(chain[0])
    report["chain"] = [_describe(parent) for parent in chain[1:]]
    report["mapped"] = [round(share, 4) for share in shares]
    return report


def _describe(image: ImageDescription) -> dict[str, object]:
    return {
        "path": str(image.path),
        "format": image.format.name.lower(),
        "kind": image.kind.value,
        "size_bytes": image.size_bytes,
        "sector_bytes": image.sector_bytes,
        "block_bytes": image.block_bytes,
        "file_bytes": image.file_bytes,
        "allocated_bytes": image.allocated_bytes,
        "identity": None if image.identity is None else str(image.identity),
    }


def _print(chain: list[ImageDescription], shares: list[float]) -> None:
    image = chain[0]
    rows = [
        ("file", str(image.path)),
        ("format", f"{image.format.name.lower()}, {image.kind.value}"),
        ("size", f"{format_size(image.size_bytes)} ({image.size_bytes} bytes)"),
        ("sectors", f"{image.sector_bytes} bytes"),
        ("blocks", format_size(image.block_bytes) if image.block_bytes else "none"),
        ("on the medium", _on_medium(image)),
        ("identity", str(image.identity or "none")),
        *(("parent", f"{parent.path}, {_on_medium(parent)}") for parent in chain[1:]),
    ]
    for name, value in rows:
        click.echo(f"{name:<13}  {value}")
    click.echo(f"[{bar(shares)}] {sum(shares) / len(shares):.0%} mapped")


def _on_medium(image: ImageDescription) -> str:
    taken, length = format_size(image.allocated_bytes), format_size(image.file_bytes)
    return f"{taken} of a file of {length}"


def bar(shares: list[float]) -> str:
    """A character for each part: the more is mapped, the darker; a little is never nothing."""
    steps = len(_SHADES) - 1
    return "".join(_SHADES[min(steps, -int(-share * steps // 1))] for share in shares)
