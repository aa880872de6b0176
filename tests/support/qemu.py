"""qemu-img and qemu-io over a target: by URL, or by blockdev options where URLs fall short.

QEMU 7.2 reads user and secret from a URL but no header digest; that one is a blockdev option.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.process import run_tool
from tests.support.server import TARGET, Server


@dataclass(frozen=True)
class Where:
    """A disk as QEMU's tools are told of it: a file name or URL, or options and their objects."""

    name: str
    is_options: bool = False
    objects: tuple[str, ...] = ()

    @property
    def object_arguments(self) -> list[str]:
        return [part for definition in self.objects for part in ("--object", definition)]

    @property
    def source(self) -> list[str]:
        kind = ["--image-opts"] if self.is_options else ["-f", "raw"]
        return [*self.object_arguments, *kind, self.name]


def by_options(
    server: Server, lun: int = 0, *, user: str = "", secret: str = "", **options: str
) -> Where:
    """Blockdev options of the LUN; further options are those of QEMU's iscsi driver."""
    fixed = {
        "driver": "raw",
        "file.driver": "iscsi",
        "file.transport": "tcp",
        "file.portal": server.portal,
        "file.target": TARGET,
        "file.lun": str(lun),
    }
    more = {f"file.{key.replace('_', '-')}": value for key, value in options.items()}
    objects: tuple[str, ...] = ()
    if user:
        more |= {"file.user": user, "file.password-secret": "chap"}
        objects = (f"secret,id=chap,data={secret}",)
    text = ",".join(f"{key}={value}" for key, value in (fixed | more).items())
    return Where(text, is_options=True, objects=objects)


def qemu_io(where: Where, commands: Sequence[str], *options: str, timeout_s: float = 60) -> str:
    """Run the commands in one session; a pattern that does not match is a failure."""
    arguments = [part for command in commands for part in ("-c", command)]
    done = run_tool(["qemu-io", *options, *arguments, *where.source], timeout_s=timeout_s)
    assert "Pattern verification failed" not in done.stdout, done.stdout
    return done.stdout


def upload(image: Path, where: Where) -> None:
    """Write a raw file onto the disk."""
    local = f"driver=raw,file.driver=file,file.filename={image}"
    target = ["--target-image-opts"] if where.is_options else ["-O", "raw"]
    objects = where.object_arguments
    run_tool(["qemu-img", "convert", *objects, "-n", "--image-opts", *target, local, where.name])


def download(where: Where, image: Path) -> None:
    """Read the disk into a new raw file."""
    run_tool(["qemu-img", "convert", *where.source, "-O", "raw", image])


def compare(image: Path, where: Where) -> None:
    """Fail unless the disk and the raw file hold the same."""
    if where.is_options:
        local = f"driver=raw,file.driver=file,file.filename={image}"
        names = ["--image-opts", local, where.name]
    else:
        names = ["-f", "raw", "-F", "raw", str(image), where.name]
    run_tool(["qemu-img", "compare", *where.object_arguments, *names])
