"""QEMU's initiator: whole images both ways under each kind of session, and patterns."""

import filecmp
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.images import MIB, random_image
from tests.support.qemu import Where, by_options, compare, download, qemu_io, upload
from tests.support.server import Serve, Server, Setup

SIZE = 48 * MIB
USER, SECRET = "tester", "secret-of-14-b"


@dataclass(frozen=True)
class Kind:
    """A kind of session: what the target asks for, and how QEMU is told."""

    target: dict[str, Any]
    where: Callable[[Server], Where]
    chap: bool = False


def plain(server: Server) -> Where:
    return Where(server.url())


KINDS = {
    "plain": Kind({}, plain),
    "chap": Kind({}, lambda server: Where(server.url(credentials=f"{USER}%{SECRET}")), chap=True),
    "header-digest": Kind(
        {"header_digest": "required"}, lambda server: by_options(server, header_digest="crc32c")
    ),
    "chap-and-header-digest": Kind(
        {"header_digest": "required"},
        lambda server: by_options(server, user=USER, secret=SECRET, header_digest="crc32c"),
        chap=True,
    ),
    "r2t-for-everything": Kind(
        {
            "limits": {
                "initial_r2t": True,
                "immediate_data": False,
                "max_burst_length": 65536,
                "first_burst_length": 65536,
            }
        },
        plain,
    ),
    "small-segments": Kind({"limits": {"max_recv_data_segment_length": 8192}}, plain),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def disk(path: Path, **more: object) -> dict[str, object]:
    return {"path": path, "size": SIZE, **more}


@pytest.fixture
def server(kind: Kind, serve: Serve, tmp_path: Path) -> Server:
    target = dict(kind.target)
    if kind.chap:
        secret = tmp_path / "secret"
        secret.write_text(SECRET, encoding="utf-8")
        secret.chmod(0o600)
        target["chap"] = {"user": USER, "secret_file": secret}
    return serve(Setup({"disk": disk(tmp_path / "disk.img")}, target=target))


def test_a_whole_image_there_and_back(kind: Kind, server: Server, tmp_path: Path) -> None:
    image = random_image(tmp_path / "source.img", SIZE, holes=True)
    where = kind.where(server)
    upload(image, where)
    compare(image, where)
    download(where, tmp_path / "copy.img")
    assert filecmp.cmp(image, tmp_path / "copy.img", shallow=False)
    assert filecmp.cmp(image, tmp_path / "disk.img", shallow=False)


@pytest.mark.parametrize("kind", ["chap"], indirect=True)
@pytest.mark.parametrize("credentials", ["", f"{USER}%wrong-secret-12", f"nobody%{SECRET}"])
def test_wrong_credentials_see_nothing(server: Server, credentials: str) -> None:
    with pytest.raises(AssertionError, match=r"(?i)auth|login|target"):
        qemu_io(Where(server.url(credentials=credentials)), ["read 0 4k"])


BLOCK_SIZES = [512, 4096]


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("write_cache", [True, False])
def test_patterns_come_back(
    serve: Serve, tmp_path: Path, block_size: int, write_cache: bool
) -> None:
    # QEMU 7.2 asks a thin disk for its mapping in units of 512 and stops at larger blocks.
    thin = block_size == 512
    settings = disk(
        tmp_path / "disk.img", block_size=block_size, write_cache=write_cache, thin=thin
    )
    where = Where(serve(Setup({"disk": settings})).url())
    spans = [(0, "4k"), (4096 * 3, "60k"), (MIB - 4096, "2M"), (SIZE - MIB, "1M")]
    writes = [f"write -P {n + 1} {at} {length}" for n, (at, length) in enumerate(spans)]
    reads = [f"read -P {n + 1} {at} {length}" for n, (at, length) in enumerate(spans)]
    qemu_io(where, [*writes, "flush", *reads, f"read -P 0 {8 * MIB} 1M"])
    qemu_io(where, [f"write -f -P 9 {16 * MIB} 64k", f"read -P 9 {16 * MIB} 64k", *reads])


def test_discard_and_zeroes_read_back_as_zeroes(serve: Serve, tmp_path: Path) -> None:
    where = Where(serve(Setup({"disk": disk(tmp_path / "disk.img")})).url())
    qemu_io(where, ["write -P 5 0 8M", "flush"])
    allocated = (tmp_path / "disk.img").stat().st_blocks
    zeroed = [f"discard {MIB} 2M", f"write -z {4 * MIB} 1M", f"write -z -u {6 * MIB} 1M"]
    kept = ["read -P 5 0 1M", f"read -P 5 {3 * MIB} 1M", f"read -P 5 {7 * MIB} 1M"]
    gone = [f"read -P 0 {MIB} 2M", f"read -P 0 {4 * MIB} 1M", f"read -P 0 {6 * MIB} 1M"]
    qemu_io(where, [*zeroed, *kept, *gone], "--discard=unmap")
    assert (tmp_path / "disk.img").stat().st_blocks < allocated


def test_two_initiators_write_side_by_side(serve: Serve, tmp_path: Path) -> None:
    setup = Setup({"one": disk(tmp_path / "one.img"), "two": disk(tmp_path / "two.img")})
    server = serve(setup)

    def work(number: int) -> None:
        """Each initiator has the odd or the even MiB of the first disk, in steps of 64 KiB."""
        spans = range(number * MIB, 16 * MIB, 2 * MIB)
        for at in spans:
            steps = range(at, at + MIB, 64 << 10)
            writes = [f"aio_write -P {number + 1} {step} 64k" for step in steps]
            qemu_io(Where(server.url(0)), [*writes, "aio_flush", f"read -P {number + 1} {at} 1M"])
        qemu_io(Where(server.url(1)), [f"write -P {number + 1} {number * MIB} 1M"])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (0, 1)))
    for number in (0, 1):
        reads = [f"read -P {number + 1} {at} 1M" for at in range(number * MIB, 16 * MIB, 2 * MIB)]
        qemu_io(Where(server.url(0)), reads)
        qemu_io(Where(server.url(1)), [f"read -P {number + 1} {number * MIB} 1M"])
