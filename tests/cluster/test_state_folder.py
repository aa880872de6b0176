"""A state folder that cannot be written: PERSISTENT RESERVE OUT fails, and nothing has happened.

The folder is broken in ways that stop root, too.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyiscsi_target.client import (
    CommandFailed,
    Initiator,
    Portal,
    Reservations,
    ReservationType,
    Session,
)
from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.server.reservation_state import document_name
from tests.support.dying_server import DISK_FULL, dying_server
from tests.support.live import config_of, serving
from tests.support.peer import Done, Peer
from tests.support.raw_initiator import read_16, write_16
from tests.support.reserving import (
    CLEAR,
    PREEMPT,
    PREEMPT_AND_ABORT,
    REGISTER,
    REGISTER_AND_IGNORE,
    RELEASE,
    RESERVE,
    persistent_reserve_out,
    reserve_out,
)
from tests.support.server import TARGET

BLOCK = 512
GOOD, CHECK_CONDITION, CONFLICT = 0, 2, 0x18
KEY_A, KEY_B, KEY_C = 0xA, 0xB, 0xC
READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS = range(4)
FAILED = (SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE.value)


@dataclass(frozen=True)
class Breakage:
    """What is done to the folder, and undone."""

    do: Callable[[Path], object]
    undo: Callable[[Path], object]


def document(folder: Path) -> Path:
    return folder / f"{document_name('disk')}.json"


def temporary(folder: Path) -> Path:
    return folder / f"{document_name('disk')}.json.tmp"


def hide(folder: Path) -> None:
    """As an unmounted file system does."""
    folder.rename(folder.with_name("elsewhere"))


def show(folder: Path) -> None:
    folder.with_name("elsewhere").rename(folder)


def occupy(folder: Path) -> None:
    """The temporary file's name is taken by a folder that cannot be unlinked."""
    (temporary(folder) / "stuck").mkdir(parents=True)


def replace_by_a_file(folder: Path) -> None:
    hide(folder)
    folder.touch()


def replace_by_the_folder(folder: Path) -> None:
    folder.unlink()
    show(folder)


BREAKAGES = {
    "gone": Breakage(hide, show),
    "a file": Breakage(replace_by_a_file, replace_by_the_folder),
    "occupied": Breakage(occupy, lambda folder: shutil.rmtree(temporary(folder))),
}
REQUESTS = {
    # by the node that holds, or the one that is only registered, or the stranger
    "REGISTER": ("stranger", REGISTER, 0, KEY_C),
    "REGISTER another key": ("b", REGISTER, KEY_B, 0xBB),
    "unregister": ("a", REGISTER, KEY_A, 0),
    "REGISTER AND IGNORE": ("stranger", REGISTER_AND_IGNORE, 0, KEY_C),
    "RELEASE": ("a", RELEASE, KEY_A, 0),
    "CLEAR": ("b", CLEAR, KEY_B, 0),
    "PREEMPT": ("b", PREEMPT, KEY_B, KEY_A),
    "PREEMPT AND ABORT": ("b", PREEMPT_AND_ABORT, KEY_B, KEY_A),
}


def sense_of(done: Done) -> tuple[int, tuple[int, int]]:
    assert done.status == CHECK_CONDITION
    return done.data[2 + 2] & 0xF, done.asc


async def view(peer: Peer) -> list[object]:
    """All that a nexus can see of reservations, and feel of them."""
    answers: list[object] = []
    for action in (READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS):
        cdb = bytes([0x5E, action, 0, 0, 0, 0, 0, 0x10, 0, 0])
        answers.append((await peer.command(cdb, read_bytes=4096)).data)
    for cdb, more in (
        (bytes(6), {}),
        (read_16(0, 1), {"read_bytes": BLOCK}),
        (write_16(0, 1), {"data": bytes(BLOCK), "immediate_bytes": BLOCK}),
    ):
        answers.append((await peer.command(cdb, **more)).status)
    return answers


@pytest.mark.parametrize("breakage", BREAKAGES.values(), ids=BREAKAGES)
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
async def test_a_request_that_cannot_be_saved_changes_nothing(
    tmp_path: Path, breakage: Breakage, request_: tuple[str, int, int, int]
) -> None:
    folder = tmp_path / "state"
    config = config_of(tmp_path, server={"state_dir": folder})
    who, action, key, action_key = request_
    async with serving(config, tmp_path) as live:
        live.allowed_error = "reservations of disk are not saved"
        nodes = {
            name: await live.log_in(isid=bytes(5) + name[:1].encode())
            for name in ("a", "b", "stranger")
        }
        await reserve_out(nodes["a"], REGISTER, 0, KEY_A)
        await reserve_out(nodes["b"], REGISTER, 0, KEY_B)
        await reserve_out(nodes["a"], RESERVE, KEY_A)
        before = [await view(node) for node in nodes.values()]
        assert [seen[-1] for seen in before] == [GOOD, GOOD, CONFLICT]

        breakage.do(folder)
        done = await persistent_reserve_out(nodes[who], action, key, action_key)
        assert sense_of(done) == FAILED
        assert [await view(node) for node in nodes.values()] == before
        breakage.undo(folder)

        done = await persistent_reserve_out(nodes[who], action, key, action_key)
        assert done.status == GOOD
        for node in nodes.values():
            await node.ready()
        after = [await view(node) for node in nodes.values()]
        assert after != before
    async with serving(config, tmp_path) as live:
        again = [
            await live.log_in(isid=bytes(5) + name[:1].encode()) for name in ("a", "b", "stranger")
        ]
        assert [await view(node) for node in again] == after


@pytest.mark.parametrize("breakage", BREAKAGES.values(), ids=BREAKAGES)
async def test_a_restart_after_a_failure_finds_what_stood(
    tmp_path: Path, breakage: Breakage
) -> None:
    config = config_of(tmp_path, server={"state_dir": tmp_path / "state"})
    async with serving(config, tmp_path) as live:
        live.allowed_error = "reservations of disk are not saved"
        a = await live.log_in()
        await reserve_out(a, REGISTER, 0, KEY_A)
        await reserve_out(a, RESERVE, KEY_A)
        before = await view(a)
        breakage.do(tmp_path / "state")
        assert sense_of(await persistent_reserve_out(a, CLEAR, KEY_A)) == FAILED
        breakage.undo(tmp_path / "state")
    async with serving(config, tmp_path) as live:
        assert await view(await live.log_in()) == before


async def test_a_disk_without_room_for_a_state(tmp_path: Path) -> None:
    """The kernel refuses the bytes (as with ENOSPC); nothing half written is left or loaded."""
    config_of(tmp_path, server={"state_dir": tmp_path / "state"})
    config = tmp_path / "config.toml"
    kind = ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY
    initiator = Initiator("iqn.2026-11.example.test:a", bytes(6))

    async def connect(portal: Portal) -> Reservations:
        session = await Session.connect(portal, TARGET, initiator)
        await session.ready(0)
        return Reservations(session, 0)

    with dying_server(config, DISK_FULL) as server:
        a = await connect(server.portal)
        await a.register(KEY_A)
        server.arm()
        for _ in range(2):
            with pytest.raises(CommandFailed) as failed:
                await a.reserve(KEY_A, kind)
            sense = failed.value.result.sense
            assert sense is not None
            assert (sense.key, sense.code) == FAILED
        assert await a.read_reservation() is None
        assert not temporary(tmp_path / "state").exists()
        server.disarm()
        await a.reserve(KEY_A, kind)
        server.arm()
        with pytest.raises(CommandFailed):
            await a.clear(KEY_A)
        server.kill()
        await a.session.close()
    with dying_server(config) as server:
        a = await connect(server.portal)
        assert await a.read_keys() == (1, [KEY_A])
        reservation = await a.read_reservation()
        assert reservation is not None
        assert reservation.key == KEY_A
        await a.session.close()
