"""RFC 7143 section 7 at error recovery level 0: digests, format and protocol errors, Reject."""

import pytest

from pyiscsi_target.iscsi.constants import IMMEDIATE, Opcode, RejectReason
from pyiscsi_target.iscsi.events import ConnectionFailed
from pyiscsi_target.iscsi.pdu import (
    DataOut,
    LoginRequest,
    NopIn,
    NopOut,
    Pdu,
    Reject,
    ScsiCommand,
    ScsiResponse,
    SnackRequest,
    TextRequest,
)
from tests.support.memory import RawPeer, Target, frame, write_10

BOTH_DIGESTS = ("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")
PING = Opcode.NOP_OUT | IMMEDIATE
WRITE_CDB = write_10(0, 2).ljust(16, b"\0")


def logged_in(*keys: tuple[str, str]) -> RawPeer:
    peer = RawPeer()
    peer.log_in(*keys)
    return peer


def damaged(peer: RawPeer, pdu: Pdu, data: bytes, offset: int) -> bytes:
    """A PDU of which one byte changed on its way."""
    whole = bytearray(frame(pdu, data, b"", **peer.digests))
    whole[offset] ^= 1
    return bytes(whole)


def rejection(peer: RawPeer, answers: list[tuple[object, bytes]]) -> tuple[Reject, bytes]:
    pdu, data = answers[0]
    assert isinstance(pdu, Reject)
    assert pdu.itt == 0xFFFFFFFF
    assert len(data) == 48
    return pdu, data


class TestDigests:
    def test_11_2_3_digests_cover_padding_and_begin_after_login(self) -> None:
        peer = logged_in(*BOTH_DIGESTS)
        ((pdu, data),) = peer.request(NopOut(PING, itt=1), b"odd")
        assert isinstance(pdu, NopIn)
        assert data == b"odd"

    @pytest.mark.parametrize("offset", [1, 20, 47, 48])
    def test_7_8_a_header_digest_error_ends_the_connection(self, offset: int) -> None:
        peer = logged_in(*BOTH_DIGESTS)
        whole = damaged(peer, NopOut(PING, itt=1, cmd_sn=1), b"", offset)
        assert peer.send_bytes(whole) == []
        assert peer.closed
        assert isinstance(peer.target.events[-1], ConnectionFailed)

    @pytest.mark.parametrize("data", [b"data", b"odd"])
    def test_7_8_a_data_digest_error_is_rejected_and_the_pdu_dropped(self, data: bytes) -> None:
        peer = logged_in(*BOTH_DIGESTS)
        pdu = NopOut(PING, itt=1, cmd_sn=1)
        answers = peer.send_bytes(damaged(peer, pdu, data, 48 + 4))
        reject, header = rejection(peer, answers)
        assert len(answers) == 1
        assert reject.reason == RejectReason.DATA_DIGEST_ERROR
        assert header == pdu.pack()
        assert not peer.closed

    def test_7_8_a_command_with_damaged_immediate_data_was_not_received(self) -> None:
        peer = logged_in(*BOTH_DIGESTS)
        pdu = ScsiCommand(0x01, 0xA1, 0, 0, 1, 1024, 1, cdb=WRITE_CDB)
        reject, _ = rejection(peer, peer.send_bytes(damaged(peer, pdu, bytes(1024), 60)))
        assert reject.reason == RejectReason.DATA_DIGEST_ERROR
        assert reject.exp_cmd_sn == 1
        ((response, _),) = peer.send(pdu, b"\x77" * 1024)
        assert response.status == 0
        assert peer.target.disk.content[:1024] == b"\x77" * 1024

    def test_7_8_damaged_data_out_ends_the_task_once_all_of_it_came(self) -> None:
        peer = logged_in(*BOTH_DIGESTS)
        ((r2t, _),) = peer.request(ScsiCommand(0x01, 0xA1, 0, 0, 1, 1024, cdb=WRITE_CDB))
        first = DataOut(flags=0, itt=1, ttt=r2t.ttt)
        answers = peer.send_bytes(damaged(peer, first, bytes(512), 60))
        reject, _ = rejection(peer, answers)
        assert reject.reason == RejectReason.DATA_DIGEST_ERROR
        assert len(answers) == 1, "the rest of the sequence is still on its way"
        second = DataOut(flags=0x80, itt=1, ttt=r2t.ttt, data_sn=1, buffer_offset=512)
        ((response, sense),) = peer.send(second, bytes(512))
        assert isinstance(response, ScsiResponse)
        assert response.status == 2
        assert (sense[2 + 2], sense[2 + 12], sense[2 + 13]) == (0x0B, 0x47, 0x05)
        assert not any(peer.target.disk.content[:1024])


class TestFormatErrors:
    def test_7_7_a_segment_above_what_was_declared(self) -> None:
        peer = logged_in()
        pdu = NopOut(PING, lengths=262145, itt=1)
        assert peer.send_bytes(pdu.pack()) == []
        assert peer.closed

    def test_7_7_a_login_segment_above_8192(self) -> None:
        peer = RawPeer()
        assert peer.send_bytes(LoginRequest(lengths=8193).pack()) == []
        assert peer.closed

    def test_11_2_2_an_ahs_outside_its_header(self) -> None:
        peer = logged_in()
        pdu = ScsiCommand(0x01, 0x81, itt=1, cmd_sn=1)
        peer.send(pdu, ahs=b"\x00\x40\x01\x00")
        assert peer.closed


class TestReject:
    @pytest.mark.parametrize("opcode", [0x07, 0x1C, 0x20, 0x21, 0x25, 0x31, 0x3F])
    def test_11_17_1_opcodes_that_no_initiator_sends(self, opcode: int) -> None:
        peer = logged_in()
        pdu = NopOut(opcode, itt=1)
        reject, header = rejection(peer, peer.send(pdu))
        assert reject.reason in (RejectReason.COMMAND_NOT_SUPPORTED, RejectReason.PROTOCOL_ERROR)
        assert header == pdu.pack()

    def test_11_16_snack_is_refused_at_level_0(self) -> None:
        peer = logged_in()
        reject, _ = rejection(peer, peer.send(SnackRequest(itt=1)))
        assert reject.reason in (
            RejectReason.COMMAND_NOT_SUPPORTED,
            RejectReason.SNACK_REJECT,
            RejectReason.PROTOCOL_ERROR,
        )
        ((pong, _),) = peer.request(NopOut(PING, itt=2))
        assert isinstance(pong, NopIn)

    def test_11_17_3_a_reject_takes_a_stat_sn(self) -> None:
        peer = logged_in()
        reject, _ = rejection(peer, peer.send(SnackRequest()))
        assert reject.stat_sn == peer.exp_stat_sn
        ((pong, _),) = peer.request(NopOut(PING, itt=2))
        assert pong.stat_sn == peer.exp_stat_sn + 1

    def test_11_17_1_a_task_tag_that_is_in_use(self) -> None:
        target = Target()
        peer = RawPeer(target)
        peer.log_in()
        peer.request(ScsiCommand(0x01, 0xA1, 0, 0, 1, 1024, cdb=WRITE_CDB))
        answers = peer.request(ScsiCommand(0x01, 0x81, itt=1))
        reject, _ = rejection(peer, answers)
        assert reject.reason == RejectReason.TASK_IN_PROGRESS

    def test_7_3_a_rejected_request_was_not_received(self) -> None:
        peer = logged_in()
        reject, _ = rejection(peer, peer.request(TextRequest(itt=1, ttt=0x1234)))
        assert reject.reason == RejectReason.INVALID_PDU_FIELD
        assert reject.exp_cmd_sn == 1, "the initiator plugs the gap"
        ((response, _),) = peer.send(ScsiCommand(0x01, 0x81, itt=2, cmd_sn=1))
        assert response.exp_cmd_sn == 2

    def test_7_13_a_login_request_in_full_feature_phase_changes_nothing(self) -> None:
        peer = logged_in()
        answers = peer.send(LoginRequest())
        assert [type(pdu) for pdu, _ in answers] == [Reject]


class TestSequenceErrors:
    def r2t(self, peer: RawPeer) -> int:
        ((r2t, _),) = peer.request(ScsiCommand(0x01, 0xA1, 0, 0, 1, 1024, cdb=WRITE_CDB))
        return int(r2t.ttt)

    @pytest.mark.parametrize(
        "change",
        [
            {"buffer_offset": 512},
            {"ttt_offset": 1},
            {"length": 1028},
            {"flags": 0x80},
            {"flags": 0, "length": 1024},
        ],
    )
    def test_7_9_data_out_that_breaks_its_sequence_ends_the_session(
        self, change: dict[str, int]
    ) -> None:
        peer = logged_in()
        fields = dict(change)
        ttt = self.r2t(peer) + fields.pop("ttt_offset", 0)
        length = fields.pop("length", 512)
        pdu = DataOut(**{"flags": 0, "itt": 1, "ttt": ttt, **fields})
        peer.send(pdu, b"\x55" * length)
        assert peer.closed
        assert isinstance(peer.target.events[-1], ConnectionFailed)
        assert not any(peer.target.disk.content[:1024])

    def test_7_9_a_gap_in_data_sn_ends_the_task_once_all_of_it_came(self) -> None:
        peer = logged_in()
        ttt = self.r2t(peer)
        assert peer.send(DataOut(flags=0, itt=1, ttt=ttt, data_sn=1), bytes(512)) == []
        last = DataOut(flags=0x80, itt=1, ttt=ttt, data_sn=2, buffer_offset=512)
        ((response, sense),) = peer.send(last, bytes(512))
        assert isinstance(response, ScsiResponse)
        assert response.status == 2
        assert (sense[2 + 2], sense[2 + 12], sense[2 + 13]) == (0x0B, 0x47, 0x05)
        assert not peer.closed


class TestEarlyStatus:
    """Section 11.4.2: no status while data is still to come."""

    def test_11_4_2_a_refused_write_waits_for_its_unsolicited_data(self) -> None:
        peer = logged_in(("InitialR2T", "No"))
        cdb = b"\xff" * 16
        assert peer.request(ScsiCommand(0x01, 0x21, 0, 0, 1, 1024, cdb=cdb)) == []
        assert peer.send(DataOut(flags=0, itt=1), bytes(512)) == []
        last = DataOut(flags=0x80, itt=1, data_sn=1, buffer_offset=512)
        ((response, _),) = peer.send(last, bytes(512))
        assert isinstance(response, ScsiResponse)
        assert response.status == 2

    def test_11_4_2_its_tag_is_in_use_until_then(self) -> None:
        peer = logged_in(("InitialR2T", "No"))
        assert peer.request(ScsiCommand(0x01, 0x21, 0, 0, 1, 1024, cdb=b"\xff" * 16)) == []
        reject, _ = rejection(peer, peer.request(ScsiCommand(0x01, 0x81, itt=1)))
        assert reject.reason == RejectReason.TASK_IN_PROGRESS

    def test_11_4_2_a_write_that_takes_less_is_answered_after_all_came(self) -> None:
        peer = logged_in(("InitialR2T", "No"))
        cdb = write_10(0, 1).ljust(16, b"\0")
        assert peer.request(ScsiCommand(0x01, 0x21, 0, 0, 1, 1024, cdb=cdb)) == []
        ((response, _),) = peer.send(DataOut(flags=0x80, itt=1), b"\x55" * 1024)
        assert (response.status, response.flags & 0x06, response.residual) == (0, 0x02, 512)
        assert peer.target.disk.content[:1024] == b"\x55" * 512 + bytes(512)
