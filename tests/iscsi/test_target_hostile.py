"""A connection against whatever a peer may send: no exception, no nonsense, no growth."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pyiscsi_target.iscsi.constants import IMMEDIATE, RESERVED_TAG, Opcode, RejectReason
from pyiscsi_target.iscsi.pdu import BY_OPCODE, NopOut, Pdu, Reject, ScsiResponse
from pyiscsi_target.iscsi.session import serial_distance
from tests.support.memory import (
    BLOCK_LENGTH,
    Answer,
    Policy,
    RawPeer,
    Target,
    decode_stream,
    frame,
    read_10,
    write_10,
)
from tests.support.pdus import any_pdu, bytes_from, immediate, pdus_of, write_command

DEPTH = 8
NUMBERED = {
    Opcode.SCSI_RESPONSE,
    Opcode.TASK_MANAGEMENT_RESPONSE,
    Opcode.TEXT_RESPONSE,
    Opcode.LOGOUT_RESPONSE,
    Opcode.REJECT,
}
CDBS = [bytes(16), read_10(0, 1), read_10(0, 100), write_10(0, 1), write_10(0, 300), b"\xff" * 16]


class WatchedPeer(RawPeer):
    """A peer that checks what must hold of every answer, whatever was sent."""

    def __init__(self) -> None:
        super().__init__(Target(Policy(queue_depth=DEPTH)))

    def send_bytes(self, data: bytes) -> list[Answer]:
        was_closed = self.closed
        answers = super().send_bytes(data)
        assert not (was_closed and answers)
        for pdu, _ in answers:
            self._check(pdu)
        self._check_bounds()
        return answers

    def _check(self, pdu: Any) -> None:
        if pdu.opcode in NUMBERED:
            assert pdu.stat_sn == self.exp_stat_sn
        if pdu.opcode in NUMBERED or (
            pdu.stat_sn == self.exp_stat_sn
            and (
                (pdu.opcode == Opcode.NOP_IN and pdu.itt != RESERVED_TAG)
                or (pdu.opcode == Opcode.DATA_IN and pdu.flags & 1)
            )
        ):
            self.exp_stat_sn = (self.exp_stat_sn + 1) % (1 << 32)
        if pdu.opcode != Opcode.LOGIN_RESPONSE:
            assert serial_distance(pdu.max_cmd_sn + 1, pdu.exp_cmd_sn) <= DEPTH

    def _check_bounds(self) -> None:
        connection = self.target.connection
        assert len(connection._writer.window.early) < DEPTH
        assert len(connection._framer.memory) <= 1 << 20


@given(st.binary(max_size=400), st.integers(1, 400))
def test_garbage_before_login(data: bytes, chunk: int) -> None:
    target = Target()
    for start in range(0, len(data), chunk):
        decode_stream(target.feed(data[start : start + chunk]))
    if len(data) >= 48 and data[0] & 0x3F != Opcode.LOGIN_REQUEST:
        assert target.closed


@given(st.lists(st.binary(min_size=48, max_size=100), max_size=5))
def test_garbage_after_login(pieces: list[bytes]) -> None:
    peer = WatchedPeer()
    peer.log_in()
    for piece in pieces:
        peer.send_bytes(piece)


@given(st.lists(st.tuples(any_pdu(), st.binary(max_size=40)), max_size=5))
def test_arbitrary_pdus_before_login(sent: list[tuple[Pdu, bytes]]) -> None:
    peer = RawPeer()
    for pdu, data in sent:
        for answer, _ in peer.send(pdu, data):
            assert answer.opcode == Opcode.LOGIN_RESPONSE


@given(st.lists(st.tuples(any_pdu(), st.binary(max_size=40)), max_size=8))
def test_arbitrary_pdus_after_login(sent: list[tuple[Pdu, bytes]]) -> None:
    peer = WatchedPeer()
    peer.log_in()
    for pdu, data in sent:
        peer.send(pdu, data)


@st.composite
def plausible_pdus(draw: st.DrawFn) -> tuple[Pdu, bytes]:
    """Requests whose tags, numbers and offsets are close enough to meet each other."""
    cls = draw(
        st.sampled_from([cls for opcode, cls in BY_OPCODE.items() if opcode < Opcode.NOP_IN])
    )
    pdu: Any = draw(pdus_of(cls))
    pdu.opcode = cls.OPCODE | draw(st.sampled_from([0, 0, IMMEDIATE]))
    pdu.flags = draw(st.sampled_from([0x80, 0xC1, 0xA1, 0x21, 0x81, 0x85, 0x00, 0xE1, 0x40]))
    pdu.itt = draw(st.integers(1, 4) | st.just(RESERVED_TAG))
    for name, values in {
        "ttt": st.integers(0, 4) | st.just(RESERVED_TAG),
        "referenced_task_tag": st.integers(1, 4),
        "cmd_sn": st.integers(1, 12),
        "ref_cmd_sn": st.integers(1, 12),
        "data_sn": st.integers(0, 2),
        "buffer_offset": st.sampled_from([0, 0, 512, 1024]),
        "expected_data_transfer_length": st.sampled_from([0, 512, 1024, 100 * 512, 300 * 512]),
        "cdb": st.sampled_from(CDBS).map(lambda cdb: cdb.ljust(16, b"\0")),
    }.items():
        if hasattr(pdu, name):
            setattr(pdu, name, draw(values))
    data = draw(st.sampled_from([b"", b"", bytes(512), bytes(1024), b"SendTargets=All\0", b"x=y"]))
    return pdu, data


@settings(max_examples=200)
@given(
    rounds=st.lists(st.lists(plausible_pdus(), min_size=1, max_size=4), max_size=10),
    held=st.booleans(),
    digests=st.booleans(),
)
def test_plausible_sessions(
    rounds: list[list[tuple[Pdu, bytes]]], held: bool, digests: bool
) -> None:
    """Several PDUs a round, so that events wait while more is read; some answered late."""
    peer = WatchedPeer()
    peer.log_in(*[(name, "CRC32C") for name in ("HeaderDigest", "DataDigest") if digests])
    peer.target.held = held
    for sent in rounds:
        peer.send_bytes(b"".join(bytes_from(peer, pdu, data) for pdu, data in sent))
        if peer.closed:
            return
        for command in peer.target.commands[:2]:
            peer.target.commands.remove(command)
            peer.target.connection.respond(command, **peer.target.disk.execute(command))
        peer.send_bytes(b"")


class TestBounds:
    def test_immediate_commands_are_bounded(self) -> None:
        """The command window does not hold them back (section 4.2.2.1): Reject 06 must."""
        peer = RawPeer()
        peer.log_in(("InitialR2T", "Yes"))
        refused = []
        for itt in range(2000):
            write = write_command(itt, write_10(0, 2), 2 * BLOCK_LENGTH, cmd_sn=1)
            refused += [
                pdu for pdu, _ in peer.send(immediate(write), bytes(512)) if isinstance(pdu, Reject)
            ]
        assert refused
        assert {pdu.reason for pdu in refused} == {RejectReason.IMMEDIATE_COMMAND_REJECT}

    def test_commands_wait_only_within_the_window(self) -> None:
        peer = WatchedPeer()
        peer.log_in()
        for cmd_sn in range(2, 2 * DEPTH):
            write = write_command(cmd_sn, write_10(0, 1), BLOCK_LENGTH, cmd_sn=cmd_sn)
            assert peer.send(write, bytes(BLOCK_LENGTH)) == []
        first = write_command(1, write_10(0, 1), BLOCK_LENGTH, cmd_sn=1)
        answers = peer.send(first, bytes(BLOCK_LENGTH))
        assert [pdu.itt for pdu, _ in answers] == [*range(1, DEPTH + 1)]
        assert all(isinstance(pdu, ScsiResponse) for pdu, _ in answers)

    def test_an_endless_stream_of_small_pdus_leaves_nothing_behind(self) -> None:
        peer = WatchedPeer()
        peer.log_in()
        ping = frame(immediate(NopOut(itt=RESERVED_TAG, cmd_sn=1)))
        for _ in range(20):
            assert peer.send_bytes(ping * 1000) == []
        assert len(peer.target.connection._framer.memory) == 0
