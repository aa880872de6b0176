"""A connection as a whole: each event, each end, and the same session however it is delivered."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyiscsi_target.iscsi.chap import Credentials
from pyiscsi_target.iscsi.constants import (
    FINAL,
    IMMEDIATE,
    RESERVED_TAG,
    TRANSIT,
    AhsType,
    AsyncEvent,
    LoginStatus,
    LogoutReason,
    Opcode,
    RejectReason,
    TaskManagement,
    TaskManagementResponse,
)
from pyiscsi_target.iscsi.events import (
    ConnectionFailed,
    LoginFailed,
    LogoutRequested,
    PingAnswered,
    SessionRequested,
    TaskManagementRequested,
    TransferRequested,
)
from pyiscsi_target.iscsi.framing import BufferPool
from pyiscsi_target.iscsi.pdu import (
    LoginRequest,
    LogoutRequest,
    NopOut,
    Pdu,
    ReadyToTransfer,
    Reject,
    ScsiCommand,
    ScsiResponse,
    SnackRequest,
    TextRequest,
)
from pyiscsi_target.iscsi.text import ProtocolError, encode_pairs
from pyiscsi_target.iscsi.transfer import Command
from tests.support.memory import (
    BLOCK_LENGTH,
    CHECK_CONDITION,
    DISCOVERY_NAMES,
    ISID,
    TEST_UNIT_READY,
    Answer,
    Disk,
    Policy,
    RawPeer,
    Target,
    decode_stream,
    frame,
    names,
    read_10,
    write_10,
)
from tests.support.pdus import bytes_from, data_out, immediate, manage, read_command, write_command

FINISH = TRANSIT | 0x07
DIGESTS = [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")]
SMALL = [
    ("MaxRecvDataSegmentLength", "1024"),
    ("MaxBurstLength", "2048"),
    ("FirstBurstLength", "1024"),
    ("InitialR2T", "No"),
    ("MaxOutstandingR2T", "2"),
]


def logged_in(*keys: tuple[str, str], target: Target | None = None) -> RawPeer:
    peer = RawPeer(target)
    peer.log_in(*keys)
    return peer


def pattern(length: int, seed: int = 0) -> bytes:
    return bytes((seed + number * 7) % 251 for number in range(length))


class TestEvents:
    def test_session_requested(self) -> None:
        peer = logged_in()
        (event,) = peer.target.events
        assert isinstance(event, SessionRequested)
        assert event.agreement is peer.target.connection.agreement

    def test_login_failed(self) -> None:
        peer = RawPeer()
        peer.login(names("iqn.unknown"))
        (event,) = peer.target.events
        assert isinstance(event, LoginFailed)
        assert event.error.status == LoginStatus.NOT_FOUND
        assert event.initiator_name == names()[0][1]

    def test_session_refused(self) -> None:
        peer = RawPeer()
        peer.target.session_error = ProtocolError("full", status=LoginStatus.OUT_OF_RESOURCES)
        response, _ = peer.login(names())
        assert response.status == LoginStatus.OUT_OF_RESOURCES
        assert isinstance(peer.target.events[-1], LoginFailed)

    def test_a_command(self) -> None:
        peer = logged_in()
        pdu = read_command(5, read_10(1, 1), 512, lun=0x0002000000000000)
        pdu.flags |= 2
        peer.request(pdu)
        event = peer.target.events[-1]
        assert isinstance(event, Command)
        assert (event.itt, event.lun, event.attribute) == (5, 0x0002000000000000, 2)
        assert (event.expected_length, event.cdb) == (512, read_10(1, 1).ljust(16, b"\0"))
        assert event.is_read
        assert event.data == []

    def test_transfer_requested_comes_before_its_command(self) -> None:
        peer = logged_in(("InitialR2T", "Yes"))
        ((r2t, _),) = peer.request(write_command(5, write_10(0, 1), 512))
        requested = peer.target.events[-1]
        assert isinstance(requested, TransferRequested)
        peer.send(data_out(5, 0, ttt=r2t.ttt), pattern(512))
        event = peer.target.events[-1]
        assert event is requested.command
        assert b"".join(requested.command.data) == pattern(512)

    def test_task_management_requested(self) -> None:
        peer = logged_in()
        peer.request(manage(TaskManagement.LOGICAL_UNIT_RESET, 9, lun=7))
        event = peer.target.events[-1]
        assert isinstance(event, TaskManagementRequested)
        assert (event.itt, event.function, event.lun) == (9, 5, 7)

    @pytest.mark.parametrize("reason", [LogoutReason.CLOSE_SESSION, LogoutReason.CLOSE_CONNECTION])
    def test_logout_requested(self, reason: LogoutReason) -> None:
        peer = logged_in()
        peer.request(LogoutRequest(flags=FINAL | reason, itt=9))
        event = peer.target.events[-1]
        assert isinstance(event, LogoutRequested)
        assert event.reason is reason

    def test_ping_answered(self) -> None:
        peer = logged_in()
        connection = peer.target.connection
        assert connection.ping()
        assert not connection.ping(), "one ping at a time"
        ((nop_in, _),) = decode_stream(peer.target.sent())
        peer.send(immediate(NopOut(itt=RESERVED_TAG, ttt=nop_in.ttt)))
        assert isinstance(peer.target.events[-1], PingAnswered)
        assert connection.ping()

    def test_connection_failed(self) -> None:
        peer = logged_in()
        peer.request(NopOut(itt=RESERVED_TAG))
        event = peer.target.events[-1]
        assert isinstance(event, ConnectionFailed)
        assert peer.closed


def outlived(peer: RawPeer, data: bytes) -> bytes:
    """What a peer is sent that goes on after the end, and is still heard."""
    peer.target.closed = False
    count = len(peer.target.events)
    answers = peer.target.feed(data)
    assert peer.target.events[count:] == []
    return answers


AFTER_THE_END = {
    "login": frame(LoginRequest(flags=FINISH, isid=ISID), encode_pairs(names())),
    "ping": frame(immediate(NopOut(itt=3))),
    "read": frame(immediate(read_command(3, read_10(0, 1), 512))),
    "long": frame(NopOut(), bytes(1 << 20)),
}


class TestEnd:
    @pytest.mark.parametrize("after", AFTER_THE_END.values(), ids=AFTER_THE_END.keys())
    @pytest.mark.parametrize("how", ["refused", "logout", "error", "oversize", "stranger"])
    def test_nothing_is_read_after_the_end(self, how: str, after: bytes) -> None:
        peer = RawPeer()
        if how == "refused":
            peer.login(names("iqn.unknown"))
        elif how == "stranger":
            peer.send(NopOut(itt=1))
        else:
            peer.log_in()
        if how == "logout":
            peer.request(LogoutRequest(flags=FINAL, itt=1))
        elif how == "error":
            peer.request(NopOut(itt=RESERVED_TAG))
        elif how == "oversize":
            peer.send_bytes(NopOut(lengths=0xFFFFFF).pack())
        assert peer.closed
        assert outlived(peer, after) == b""
        assert outlived(peer, after * 3) == b""

    def test_what_follows_in_the_same_delivery_is_not_read(self) -> None:
        peer = logged_in()
        stream = frame(LogoutRequest(flags=FINAL, itt=1, cmd_sn=1)) + frame(
            read_command(2, read_10(0, 1), 512, cmd_sn=2)
        )
        ((response, _),) = peer.send_bytes(stream)
        assert response.opcode == Opcode.LOGOUT_RESPONSE

    def test_what_came_early_is_not_answered_after_the_logout(self) -> None:
        peer = logged_in()
        assert peer.send(NopOut(itt=2, cmd_sn=2)) == []
        ((response, _),) = peer.send(LogoutRequest(flags=FINAL, itt=1, cmd_sn=1))
        assert response.opcode == Opcode.LOGOUT_RESPONSE

    def test_what_came_before_is_answered_before_the_logout(self) -> None:
        peer = logged_in()
        stream = frame(read_command(1, read_10(0, 1), 512, cmd_sn=1)) + frame(
            LogoutRequest(flags=FINAL, itt=2, cmd_sn=2)
        )
        assert [pdu.itt for pdu, _ in peer.send_bytes(stream)] == [1, 2]


class TestLittleThings:
    """What one PDU gets for an answer, where no other test asks."""

    def test_an_extended_cdb(self) -> None:
        peer = logged_in()
        cdb = bytes(range(32))
        ahs = (17).to_bytes(2, "big") + bytes([AhsType.EXTENDED_CDB, 0]) + cdb[16:]
        peer.request(ScsiCommand(itt=1, cdb=cdb[:16]), ahs=ahs)
        event = peer.target.events[-1]
        assert isinstance(event, Command)
        assert event.cdb == cdb

    @pytest.mark.parametrize(
        "ahs", [bytes(4), b"\x00\x02\x01\x00", b"\xff\xff\x01\x00", bytes([0, 5, 1, 0] * 2)]
    )
    def test_an_ahs_that_lies_about_its_length(self, ahs: bytes) -> None:
        peer = logged_in()
        answers = peer.request(ScsiCommand(itt=1), ahs=ahs)
        if peer.closed:
            assert isinstance(answers[-1][0], Reject)
        else:
            assert isinstance(answers[-1][0], ScsiResponse)

    @pytest.mark.parametrize("data", [b"", pattern(512)])
    def test_a_bidirectional_command_is_refused(self, data: bytes) -> None:
        peer = logged_in()
        pdu = write_command(1, b"\x53", 512)
        pdu.flags |= 0x40
        ahs = b"\x00\x05" + bytes([AhsType.BIDIRECTIONAL_READ_LENGTH, 0]) + bytes(4)
        ((response, sense),) = peer.request(pdu, data, ahs)
        assert response.status == CHECK_CONDITION
        assert sense[4] == 0x05

    @pytest.mark.parametrize(
        ("pdu", "reason"),
        [
            (SnackRequest(flags=FINAL), RejectReason.COMMAND_NOT_SUPPORTED),
            (ReadyToTransfer(), RejectReason.COMMAND_NOT_SUPPORTED),
            (TextRequest(itt=1, ttt=5, cmd_sn=1), RejectReason.INVALID_PDU_FIELD),
        ],
    )
    def test_what_is_rejected_comes_back(self, pdu: Pdu, reason: RejectReason) -> None:
        peer = logged_in()
        ((reject, header),) = peer.send(pdu)
        assert isinstance(reject, Reject)
        assert (reject.reason, header) == (reason, pdu.pack())
        assert not peer.closed

    @pytest.mark.parametrize(
        ("flags", "cid", "response"),
        [(FINAL | 1, 9, 1), (FINAL | 2, 0, 2), (FINAL | 2, 9, 2)],
    )
    def test_a_logout_that_does_not_happen(self, flags: int, cid: int, response: int) -> None:
        peer = logged_in()
        ((answer, _),) = peer.request(LogoutRequest(flags=flags, itt=1, cid=cid))
        assert (answer.opcode, answer.response) == (Opcode.LOGOUT_RESPONSE, response)
        assert not peer.closed
        ((nop_in, _),) = peer.request(NopOut(itt=2), b"still here")
        assert nop_in.itt == 2

    def test_abort_of_what_is_no_scsi_task(self) -> None:
        peer = logged_in()
        peer.target.manage = lambda request: None
        peer.request(manage(TaskManagement.LOGICAL_UNIT_RESET, 7))
        abort = manage(TaskManagement.ABORT_TASK, 8, referenced_task_tag=7, ref_cmd_sn=1)
        ((result, _),) = peer.request(immediate(abort))
        assert result.response == TaskManagementResponse.FUNCTION_REJECTED

    @pytest.mark.parametrize(
        "pdu", [NopOut(itt=1), read_command(1, bytes(6), 0), manage(1, 1), data_out(1, 0)]
    )
    def test_a_discovery_session_takes_little(self, pdu: Any) -> None:
        peer = RawPeer()
        peer.login(DISCOVERY_NAMES)
        ((reject, _),) = peer.send(pdu)
        assert isinstance(reject, Reject)
        assert not peer.closed

    def test_async_messages(self) -> None:
        peer = logged_in()
        peer.target.connection.request_logout(30)
        peer.target.connection.announce_drop()
        (logout, _), (drop, _) = decode_stream(peer.target.sent())
        assert (logout.event, logout.parameter3) == (AsyncEvent.LOGOUT_REQUESTED, 30)
        assert (drop.event, drop.parameter1) == (AsyncEvent.CONNECTION_DROPPED, 0)
        assert (logout.itt, drop.stat_sn) == (RESERVED_TAG, logout.stat_sn + 1)

    def test_no_secret_shows(self) -> None:
        credentials = Credentials("host", b"a secret of some length")
        target = Target(Policy(credentials=credentials))
        peer = RawPeer(target)
        peer.login([*names(), ("AuthMethod", "CHAP")], flags=0)
        peer.login([("CHAP_A", "7")], flags=0)
        peer.login([("CHAP_N", "host"), ("CHAP_R", "0x00")], flags=0)
        shown = repr(target.events) + repr(target.connection) + str(target.events[-1])
        assert isinstance(target.events[-1], LoginFailed)
        assert "a secret" not in shown
        assert credentials.secret.hex() not in shown


class DeliveredPeer(RawPeer):
    """A peer whose bytes arrive cut where `edges` says, round after round."""

    def __init__(self, edges: list[int], target: Target | None = None) -> None:
        super().__init__(target)
        self.edges = edges

    def send_bytes(self, data: bytes) -> list[Answer]:
        answers = b""
        cuts = sorted({edge % (len(data) or 1) for edge in self.edges} - {0})
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            answers += self.target.feed(data[start:end])
        return decode_stream(answers, **self.digests)


def sent_together(peer: RawPeer, *sent: tuple[Any, bytes]) -> list[Answer]:
    """The answers to PDUs that leave at once, numbered here."""
    stream = b""
    for pdu, data in sent:
        if hasattr(pdu, "cmd_sn"):
            pdu.cmd_sn = peer.cmd_sn
            peer.cmd_sn += 0 if pdu.opcode & IMMEDIATE else 1
        stream += bytes_from(peer, pdu, data)
    return peer.send_bytes(stream)


def session(peer: RawPeer, keys: list[tuple[str, str]]) -> list[Answer]:
    """A session with a bit of everything; what the target said, but for its numbers."""
    said: list[Answer] = []
    data = pattern(6144)
    said.append((peer.log_in(*SMALL, *keys), b""))
    answers = sent_together(
        peer,
        (write_command(1, write_10(4, 12), 6144, final=False), data[:512]),
        (data_out(1, 512), data[512:1024]),
        (immediate(NopOut(itt=2)), b"are you there?"),
        (write_command(3, write_10(20, 1), 512), data[:512]),
        (read_command(4, read_10(20, 5), 2560), b""),
        (ScsiCommand(itt=5, cdb=TEST_UNIT_READY.ljust(16, b"\0")), b""),
        (read_command(6, b"\xee", 0), b""),
    )
    said += answers
    waiting = [pdu for pdu, _ in answers if isinstance(pdu, ReadyToTransfer)]
    while waiting:
        r2t = waiting.pop(0)
        end = r2t.buffer_offset + r2t.desired_length
        start, middle = r2t.buffer_offset, r2t.buffer_offset + r2t.desired_length // 2
        answers = sent_together(
            peer,
            (data_out(1, start, 0, r2t.ttt, final=False), data[start:middle]),
            (data_out(1, middle, 1, r2t.ttt), data[middle:end]),
        )
        said += answers
        waiting += [pdu for pdu, _ in answers if isinstance(pdu, ReadyToTransfer)]
    said += sent_together(
        peer,
        (read_command(7, read_10(4, 12), 6144), b""),
        (TextRequest(itt=8), encode_pairs([("SendTargets", "")])),
        (immediate(manage(TaskManagement.ABORT_TASK, 9, referenced_task_tag=1)), b""),
        (SnackRequest(), b""),
        (LogoutRequest(flags=FINAL, itt=10), b""),
    )
    for pdu, _ in said:
        pdu.stat_sn = pdu.exp_cmd_sn = pdu.max_cmd_sn = 0
    return sorted(said, key=lambda each: (each[0].itt, each[0].opcode, _order(each[0])))


def _order(pdu: Any) -> tuple[int, int]:
    return getattr(pdu, "r2t_sn", 0), getattr(pdu, "data_sn", 0)


class TestDelivery:
    @pytest.mark.parametrize("keys", [[], DIGESTS])
    @pytest.mark.parametrize("step", [1, 3, 47, 48, 49, 500])
    def test_a_session_in_small_pieces(self, keys: list[tuple[str, str]], step: int) -> None:
        whole, cut = RawPeer(), DeliveredPeer([*range(0, 20000, step)])
        assert session(cut, keys) == session(whole, keys)
        assert cut.target.disk.content == whole.target.disk.content
        assert cut.closed
        assert len(cut.target.connection._framer.memory) == 0

    @settings(max_examples=40)
    @given(st.lists(st.integers(0, 20000), max_size=12), st.booleans())
    def test_a_session_cut_anywhere(self, edges: list[int], digests: bool) -> None:
        keys = DIGESTS if digests else []
        whole, cut = RawPeer(), DeliveredPeer(edges)
        assert session(cut, keys) == session(whole, keys)
        assert cut.target.disk.content == whole.target.disk.content

    def test_the_session_did_what_it_was_to_do(self) -> None:
        peer = RawPeer()
        said = session(peer, [])
        assert peer.target.disk.content[4 * 512 : 16 * 512] == pattern(6144)
        assert {pdu.opcode for pdu, _ in said} == {
            Opcode.LOGIN_RESPONSE,
            Opcode.SCSI_RESPONSE,
            Opcode.DATA_IN,
            Opcode.NOP_IN,
            Opcode.R2T,
            Opcode.TEXT_RESPONSE,
            Opcode.TASK_MANAGEMENT_RESPONSE,
            Opcode.REJECT,
            Opcode.LOGOUT_RESPONSE,
        }

    @pytest.mark.parametrize("length", [1, 47, 48, 60, 559])
    def test_the_beginning_of_the_next_pdu_waits(self, length: int) -> None:
        peer = logged_in()
        first = frame(read_command(1, read_10(0, 1), 512, cmd_sn=1))
        second = frame(write_command(2, write_10(0, 1), 512, cmd_sn=2), pattern(512))
        answers = peer.send_bytes(first + second[:length])
        assert [pdu.itt for pdu, _ in answers] == [1]
        answers = peer.send_bytes(second[length:])
        assert [pdu.itt for pdu, _ in answers] == [2]
        assert peer.target.disk.content[:512] == pattern(512)


class TestTwoInitiators:
    @staticmethod
    def both() -> tuple[RawPeer, RawPeer]:
        """Two connections that share a disk and the receive buffers."""
        disk, pool = Disk(), BufferPool(512 * 1024, keep=1)
        peers = RawPeer(Target(disk=disk)), RawPeer(Target(disk=disk))
        for peer in peers:
            peer.target.connection._framer._pool = pool
            peer.log_in()
        return peers

    def test_what_one_writes_the_other_reads(self) -> None:
        one, other = self.both()
        one.request(write_command(1, write_10(9, 2), 1024), pattern(1024))
        ((_, data),) = other.request(read_command(1, read_10(9, 2), 1024))
        assert data == pattern(1024)

    @pytest.mark.parametrize("step", [1, 48, 300])
    def test_their_bytes_alternate(self, step: int) -> None:
        """Unfinished PDUs of both, in buffers that both use."""
        peers = self.both()
        blocks = 8
        streams = []
        for number, _ in enumerate(peers):
            data = pattern(blocks * BLOCK_LENGTH, number)
            write = write_command(1, write_10(number * blocks, blocks), len(data), cmd_sn=1)
            streams.append(frame(write, data))
        said = [b"", b""]
        for start in range(0, len(streams[0]), step):
            for number, peer in enumerate(peers):
                said[number] += peer.target.feed(streams[number][start : start + step])
        for number, answers in enumerate(said):
            ((response, _),) = decode_stream(answers)
            assert (response.status, response.itt) == (0, 1)
            start = number * blocks * BLOCK_LENGTH
            content = peers[0].target.disk.content[start : start + blocks * BLOCK_LENGTH]
            assert content == pattern(blocks * BLOCK_LENGTH, number)

    def test_one_may_fail_and_the_other_go_on(self) -> None:
        one, other = self.both()
        one.send_bytes(frame(write_command(1, write_10(0, 8), 4096), pattern(4096))[:2000])
        one.send_bytes(bytes(5000))
        ((data_in, _),) = other.request(read_command(1, read_10(0, 1), 512))
        assert data_in.status == 0


class TestHeldCommands:
    def test_data_outlives_its_round(self) -> None:
        """A deferred write's data stays what it was while the receive buffer is used again."""
        peer = logged_in()
        peer.target.held = True
        peer.send_bytes(
            frame(write_command(1, write_10(0, 1), 512, final=True, cmd_sn=2), pattern(512))
        )
        peer.target.held = False
        peer.send(NopOut(itt=5, cmd_sn=1), bytes(4096))
        assert peer.target.disk.content[:512] == pattern(512)

    def test_answers_may_come_in_any_order(self) -> None:
        peer = logged_in()
        peer.target.held = True
        for itt in (1, 2, 3):
            assert peer.request(read_command(itt, read_10(itt, 1), 512)) == []
        held = {command.itt: command for command in peer.target.commands}
        answers = [decode_stream(peer.target.answer(held[itt]))[0][0] for itt in (3, 1, 2)]
        assert [answer.itt for answer in answers] == [3, 1, 2]
        stat_sns = [answer.stat_sn for answer in answers]
        assert stat_sns == [*range(stat_sns[0], stat_sns[0] + 3)]
