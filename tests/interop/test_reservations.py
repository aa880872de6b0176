"""Persistent reservations over the wire: a killed server, and a state folder that is gone."""

import shutil
import struct
from pathlib import Path

from tests.support.images import MIB
from tests.support.raw_initiator import RawInitiator, write_16
from tests.support.server import TARGET, Setup, serving

NODE_1 = {"InitiatorName": "iqn.2026-11.example.test:node1"}
NODE_2 = {"InitiatorName": "iqn.2026-11.example.test:node2"}
KEY_1, KEY_2 = 0x11, 0x22
REGISTER, RESERVE, PREEMPT_AND_ABORT = 0, 1, 5
WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
GOOD, CHECK_CONDITION, RESERVATION_CONFLICT = 0x00, 0x02, 0x18
READ_KEYS = bytes.fromhex("5e00 0000000000 0100 00")


def reserve_out(
    node: RawInitiator, action: int, key: int, action_key: int = 0, *, kind: int = 0
) -> int:
    cdb = struct.pack(">BBBxxIx", 0x5F, action, kind, 24)
    return node.command(cdb, data=struct.pack(">QQ8x", key, action_key))[0]


def keys_of(node: RawInitiator) -> list[int]:
    status, data = node.command(READ_KEYS, read_bytes=256)
    assert status == GOOD
    count = int.from_bytes(data[4:8], "big") // 8
    return list(struct.unpack_from(f">{count}Q", data, 8))


def logged_in(address: tuple[str, int], keys: dict[str, str]) -> RawInitiator:
    node = RawInitiator(address)
    node.login(TARGET, keys=keys)
    node.command(bytes(6))  # the power on attention
    return node


def setup_of(directory: Path) -> Setup:
    disk = {"path": directory / "disk.img", "size": MIB}
    return Setup({"disk": disk}, server={"state_dir": directory / "state"})


def test_a_failover_over_a_killed_server(tmp_path: Path) -> None:
    setup = setup_of(tmp_path)
    kind = WRITE_EXCLUSIVE_REGISTRANTS_ONLY
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with (
        serving(setup, tmp_path / "first") as server,
        logged_in(server.address, NODE_1) as one,
        logged_in(server.address, NODE_2) as two,
    ):
        assert reserve_out(one, REGISTER, 0, KEY_1) == GOOD
        assert reserve_out(two, REGISTER, 0, KEY_2) == GOOD
        assert reserve_out(one, RESERVE, KEY_1, kind=kind) == GOOD
        server.process.kill()
    with (
        serving(setup, tmp_path / "second") as server,
        logged_in(server.address, NODE_2) as two,
    ):
        assert keys_of(two) == [KEY_1, KEY_2]
        assert reserve_out(two, RESERVE, KEY_2, kind=kind) == RESERVATION_CONFLICT
        assert reserve_out(two, PREEMPT_AND_ABORT, KEY_2, KEY_1, kind=kind) == GOOD
        assert two.command(write_16(0, 1), data=bytes(512))[0] == GOOD
        with logged_in(server.address, NODE_1) as one:
            assert one.command(write_16(0, 1), data=bytes(512))[0] == RESERVATION_CONFLICT
            assert keys_of(one) == [KEY_2]


def test_without_its_state_folder_the_server_promises_nothing(tmp_path: Path) -> None:
    setup = setup_of(tmp_path)
    with (
        serving(setup, tmp_path) as server,
        logged_in(server.address, NODE_1) as node,
    ):
        shutil.rmtree(tmp_path / "state")
        assert reserve_out(node, REGISTER, 0, KEY_1) == CHECK_CONDITION
        assert keys_of(node) == []
        (tmp_path / "state").mkdir()
        assert reserve_out(node, REGISTER, 0, KEY_1) == GOOD
