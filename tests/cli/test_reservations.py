"""`reservations`: the same lists and purges, from a running server and from what is stored."""

import asyncio
import json
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from pyiscsi_target.cli import main
from pyiscsi_target.cli.reservation_table import print_reservations
from pyiscsi_target.scsi.reservations import Reservation, ReservationType, State
from pyiscsi_target.server.reservation_report import report
from pyiscsi_target.server.reservation_state import document_name
from tests.support.live import MIB, Live, config_of, serving
from tests.support.peer import INITIATOR, ISID, Peer

GOOD, CHECK_CONDITION, CONFLICT = 0x00, 0x02, 0x18
REGISTER, RESERVE = 0, 1
WE_RO = 5
OTHER_ISID = bytes.fromhex("400001370001")
PORT, OTHER_PORT = f"{INITIATOR},i,0x400001370000", f"{INITIATOR},i,0x400001370001"
DISKS = {name: {"path": f"{name}.img", "size": MIB} for name in ("quorum", "data")}
WRITE = bytes.fromhex("2a00000000000000010000")[:10]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command sends the log of its process to its stderr."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def invoke(directory: Path, *options: str) -> Result:
    config = str(directory / "config.toml")
    return CliRunner().invoke(main, ["reservations", config, *options])


async def command(directory: Path, *options: str) -> Result:
    """The command beside the server of this loop."""
    return await asyncio.to_thread(invoke, directory, *options)


def listed(result: Result) -> dict[str, Any]:
    """The disks of a JSON list, by name."""
    assert result.exit_code == 0, result.output
    return {disk["disk"]: disk for disk in json.loads(result.stdout)["disks"]}


async def reserve_out(peer: Peer, action: int, key: int, action_key: int = 0, **more: int) -> int:
    flags = 1  # APTPL
    cdb = struct.pack(">BBBxxIx", 0x5F, action, more.get("kind", 0), 24)
    parameters = struct.pack(">QQ4xB3x", key, action_key, flags)
    done = await peer.command(cdb, data=parameters, lun=more.get("lun", 0))
    return done.status


async def two_sessions_of_one_initiator(live: Live) -> tuple[Peer, Peer]:
    """One came back under another ISID; the first of them holds the quorum disk."""
    first = await live.log_in(isid=ISID)
    second = await live.log_in(isid=OTHER_ISID)
    assert await reserve_out(first, REGISTER, 0, 0x11) == GOOD
    assert await reserve_out(second, REGISTER, 0, 0x22) == GOOD
    assert await reserve_out(first, RESERVE, 0x11, kind=WE_RO) == GOOD
    return first, second


async def test_a_list_with_and_without_the_server(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, disks=DISKS), tmp_path) as live:
        first, _ = await two_sessions_of_one_initiator(live)
        first.reset()
        await live.until(lambda: len(live.app._connections) == 1)
        running = listed(await command(tmp_path, "--json"))
    assert running["data"]["registrations"] == []
    quorum = running["quorum"]
    assert quorum["type"] == "Write Exclusive - Registrants Only"
    assert quorum["aptpl"] is True
    assert quorum["registrations"] == [
        {
            "initiator": INITIATOR,
            "initiator_port": PORT,
            "target_port": 1,
            "key": "0x0000000000000011",
            "holder": True,
            "connected": False,
        },
        {
            "initiator": INITIATOR,
            "initiator_port": OTHER_PORT,
            "target_port": 1,
            "key": "0x0000000000000022",
            "holder": False,
            "connected": True,
        },
    ]
    stored = listed(invoke(tmp_path, "--json"))
    for entry in quorum["registrations"]:
        entry["connected"] = None
    assert stored == running


async def test_an_orphan_is_purged_while_the_server_runs(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, disks=DISKS), tmp_path) as live:
        first, second = await two_sessions_of_one_initiator(live)
        result = await command(tmp_path, "--purge", PORT)
        assert result.exit_code == 0
        assert result.stdout == f"quorum: 1 registration of {PORT} removed\n"
        assert (await first.command(bytes(6))).asc == (0x2A, 0x05)
        assert (await second.command(bytes(6))).asc == (0x2A, 0x04)
        assert await reserve_out(first, RESERVE, 0x11, kind=WE_RO) == CONFLICT
        assert await reserve_out(second, RESERVE, 0x22, kind=WE_RO) == GOOD
        assert (await first.command(WRITE, data=bytes(512))).status == CONFLICT
        result = await command(tmp_path, "--purge", PORT)
        assert result.exit_code == 1
        assert f"{PORT} is registered on no disk" in result.stderr
    assert [
        e["initiator_port"] for e in listed(invoke(tmp_path, "--json"))["quorum"]["registrations"]
    ] == [OTHER_PORT]


async def test_an_initiator_is_purged_while_no_server_runs(tmp_path: Path) -> None:
    config = config_of(tmp_path, disks=DISKS)
    async with serving(config, tmp_path) as live:
        await two_sessions_of_one_initiator(live)
    result = await command(tmp_path, "--purge", INITIATOR)
    assert result.exit_code == 0
    assert result.stdout == f"quorum: 2 registrations of {INITIATOR} removed\n"
    async with serving(config, tmp_path) as live:
        peer = await live.log_in(isid=ISID)
        done = await peer.command(bytes.fromhex("5e000000000000100000"), read_bytes=4096)
        assert done.data[4:8] == bytes(4)  # no keys


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    config_of(tmp_path, disks=DISKS)
    result = invoke(tmp_path)
    assert result.exit_code == 0
    assert "quorum: nobody is registered" in result.stdout
    assert "No server runs" in result.stdout
    assert invoke(tmp_path, "--purge", INITIATOR).exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


async def test_a_state_folder_that_is_gone(tmp_path: Path) -> None:
    """A purge that cannot be saved has not happened, and says so."""
    async with serving(config_of(tmp_path, disks=DISKS), tmp_path) as live:
        live.allowed_error = "reservations of"
        await two_sessions_of_one_initiator(live)
        document = tmp_path / "state" / f"{document_name('quorum')}.json.tmp"
        document.mkdir()
        result = await command(tmp_path, "--purge", INITIATOR)
        document.rmdir()
        assert result.exit_code == 1
        assert "quorum" in result.stderr
        assert len(listed(await command(tmp_path, "--json"))["quorum"]["registrations"]) == 2


HOLDER = ("iqn.2026-11.lab.example:node1,i,0x400001370000", 1)
HELD = State(
    {HOLDER: 0x11}, Reservation(ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, HOLDER), 7
)


@pytest.mark.parametrize(
    ("state", "reserved_by", "expected"),
    [
        (HELD, None, "q: Write Exclusive - Registrants Only, generation 7, does not survive"),
        (State({HOLDER: 1}, aptpl=True), None, "q: not reserved, generation 0, survives"),
        (State(), "iqn.x", "q: reserved by iqn.x (RESERVE)"),
        (State(lost=True), None, "q: its reservations are lost"),
    ],
)
def test_a_disk_in_words(
    state: State, reserved_by: str | None, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = report("q", state, (), reserved_by)
    print_reservations([disk], True, Console(force_terminal=False, width=80))
    assert capsys.readouterr().out.startswith(expected)


def test_a_table_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    disk = report("q[red]", HELD, [HOLDER])
    print_reservations([disk], True, Console(force_terminal=True, width=200, no_color=True))
    output = capsys.readouterr().out
    assert "q[red]: Write Exclusive - Registrants Only" in output
    assert HOLDER[0] in output
    assert "open" in output


async def test_what_is_lost_or_stale_says_why(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, disks=DISKS), tmp_path) as live:
        await two_sessions_of_one_initiator(live)
    last, previous = sorted((tmp_path / "state").glob("reservations-*"))
    last.write_text("no document")
    result = invoke(tmp_path)
    assert f"event=state_fallback document={last.stem} used={previous}" in result.stderr
    previous.write_text("")
    result = invoke(tmp_path)
    assert "quorum: its reservations are lost" in result.stdout
    assert "event=reservations_lost disk=quorum why=" in result.stderr
    assert str(last) in result.stderr
