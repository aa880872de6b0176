"""libiscsi's small tools: discovery, identity, capacity, write protection, CHAP both ways."""

import re
from pathlib import Path

import pytest

from tests.support.images import GIB, MIB
from tests.support.process import run_tool
from tests.support.raw_initiator import raw_session
from tests.support.server import TARGET, Serve, Server, Setup

# What iscsi-inq prints of each page; 86h it cannot decode, so a plain session reads that one.
VPD_PAGES = {
    0x00: "Page:0xb2 LOGICAL_BLOCK_PROVISIONING",
    0x80: "Unit Serial Number:[SN-0042",
    0x83: "Designator Type:(3) NAA",
    0xB0: "maximum unmap block descriptor count:",
    0xB1: "Medium Rotation Rate:",
    0xB2: "lbpu:1",
}
INITIATOR_SECRET, TARGET_SECRET = "initiator-secret", "target-secret-1"


def setup(directory: Path, **target: object) -> Setup:
    disks = {
        "small": {
            "path": directory / "small.img",
            "size": 64 * MIB,
            "vendor": "ACME",
            "product": "Roadrunner",
            "serial": "SN-0042",
        },
        "large": {"path": directory / "large.img", "size": 3 * GIB, "block_size": 4096},
    }
    return Setup(disks, target=target)


def secret_file(path: Path, secret: str) -> Path:
    path.write_text(secret, encoding="utf-8")
    path.chmod(0o600)
    return path


def test_discovery_names_the_target_and_its_luns(serve: Serve, tmp_path: Path) -> None:
    server = serve(setup(tmp_path))
    listed = run_tool(["iscsi-ls", "--show-luns", f"iscsi://{server.portal}"]).stdout
    assert f"Target:{TARGET} Portal:{server.portal},1" in listed
    assert re.findall(r"Lun:(\d+) +Type:DIRECT_ACCESS \(Size:(\d+\w)\)", listed) == [
        ("0", "63M"),
        ("1", "2G"),
    ]


def test_discovery_hides_what_the_initiator_may_not_use(serve: Serve, tmp_path: Path) -> None:
    server = serve(setup(tmp_path, initiators=["iqn.2026-11.example.test:friend"]))
    command = ["iscsi-ls", f"iscsi://{server.portal}"]
    assert TARGET not in run_tool(command, check=False).stdout
    friend = ["-i", "iqn.2026-11.example.test:friend"]
    assert TARGET in run_tool([*command, *friend]).stdout


def test_standard_inquiry(serve: Serve, tmp_path: Path) -> None:
    answer = run_tool(["iscsi-inq", serve(setup(tmp_path)).url()]).stdout
    for expected in (
        "Peripheral Device Type:DIRECT_ACCESS",
        "Removable:0",
        "CmdQue:1",
        "Vendor:ACME",
        "Product:Roadrunner",
        "Version Descriptor:0960 iSCSI",
    ):
        assert expected in answer


@pytest.mark.parametrize(("page", "expected"), VPD_PAGES.items())
def test_vital_product_data(serve: Serve, tmp_path: Path, page: int, expected: str) -> None:
    command = ["iscsi-inq", "-e", "1", "-c", str(page), serve(setup(tmp_path)).url()]
    done = run_tool(command)
    assert expected in done.stdout
    assert "failed" not in done.stderr


def test_extended_inquiry_page(serve: Serve, tmp_path: Path) -> None:
    with raw_session(serve(setup(tmp_path)).address, TARGET) as session:
        status, page = session.command(bytes([0x12, 1, 0x86, 0, 64, 0]), read_bytes=64)
    assert status == 0
    assert page[:4] == bytes([0, 0x86, 0, 0x3C])


def test_identity_survives_a_restart_and_a_move(serve: Serve, tmp_path: Path) -> None:
    state = {"state_dir": tmp_path / "state"}

    def identity(path: Path) -> str:
        disks = {"disk": {"path": path, "size": MIB}}
        server = serve(Setup(disks, server=state))
        answer = run_tool(["iscsi-inq", "-e", "1", "-c", "131", server.url()]).stdout
        assert server.process.stop() == 0
        return answer

    first = identity(tmp_path / "old.img")
    (tmp_path / "old.img").rename(tmp_path / "new.img")
    assert identity(tmp_path / "new.img") == first


@pytest.mark.parametrize(("lun", "block_size", "size"), [(0, 512, 64 * MIB), (1, 4096, 3 * GIB)])
def test_capacity(serve: Serve, tmp_path: Path, lun: int, block_size: int, size: int) -> None:
    answer = run_tool(["iscsi-readcapacity16", serve(setup(tmp_path)).url(lun)]).stdout
    assert f"RETURNED LOGICAL BLOCK ADDRESS:{size // block_size - 1}\n" in answer
    assert f"LOGICAL BLOCK LENGTH IN BYTES:{block_size}\n" in answer
    assert "LBPME:1" in answer


def test_software_write_protect(serve: Serve, tmp_path: Path) -> None:
    server = serve(setup(tmp_path))
    write = ["qemu-io", "-f", "raw", "-c", "write 0 4k", server.url()]
    run_tool(write)
    assert swp(server, "on") == "SWP:1"
    refused = run_tool(write, check=False)
    assert "wrote" not in refused.stdout
    assert swp(server, "off") == "SWP:0"
    run_tool(write)


def swp(server: Server, value: str) -> str:
    """Set the bit, and what the tool reads back."""
    run_tool(["iscsi-swp", f"--swp={value}", server.url()])
    return run_tool(["iscsi-swp", server.url()]).stdout.strip()


@pytest.fixture
def mutual(serve: Serve, tmp_path: Path) -> Server:
    one_way = secret_file(tmp_path / "one-way", INITIATOR_SECRET)
    back = secret_file(tmp_path / "back", TARGET_SECRET)
    chap = {"user": "host", "secret_file": one_way}
    mutual_chap = {"user": "disks", "secret_file": back}
    return serve(setup(tmp_path, chap=chap, mutual_chap=mutual_chap))


def test_mutual_chap(mutual: Server) -> None:
    url = mutual.url(credentials=f"host%{INITIATOR_SECRET}")
    run_tool(["iscsi-inq", f"{url}?target_user=disks&target_password={TARGET_SECRET}"])


def test_mutual_chap_unmasks_a_target_that_does_not_know_the_secret(mutual: Server) -> None:
    url = mutual.url(credentials=f"host%{INITIATOR_SECRET}")
    wrong = run_tool(
        ["iscsi-inq", f"{url}?target_user=disks&target_password=another-secret"], check=False
    )
    assert wrong.returncode != 0
    assert "DIRECT_ACCESS" not in wrong.stdout
