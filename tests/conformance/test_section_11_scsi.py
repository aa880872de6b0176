"""RFC 7143 sections 11.2 to 11.8: SCSI commands, their data and their responses, PDU by PDU."""

from typing import Any

import pytest

from pyiscsi_target.iscsi.constants import IMMEDIATE, Opcode, RejectReason
from pyiscsi_target.iscsi.pdu import (
    DataIn,
    DataOut,
    ReadyToTransfer,
    Reject,
    ScsiCommand,
    ScsiResponse,
)
from pyiscsi_target.iscsi.transfer import Command
from tests.support.memory import (
    BLOCK_LENGTH,
    INVALID_OPCODE_SENSE,
    Answer,
    Disk,
    RawPeer,
    Target,
    read_10,
    write_10,
)

READ, WRITE = 0x40, 0x20
FINAL_SIMPLE = 0x81
OVERFLOW, UNDERFLOW, STATUS = 0x04, 0x02, 0x01
NO_TAG = 0xFFFFFFFF


def logged_in(*keys: tuple[str, str], target: Target | None = None) -> RawPeer:
    peer = RawPeer(target)
    peer.log_in(*keys)
    return peer


def read(peer: RawPeer, blocks: int, expected: int, itt: int = 1) -> list[Answer]:
    cdb = read_10(0, blocks).ljust(16, b"\0")
    return peer.request(ScsiCommand(0x01, FINAL_SIMPLE | READ, 0, 0, itt, expected, cdb=cdb))


def write(
    peer: RawPeer, blocks: int, expected: int, data: bytes = b"", itt: int = 1, lun: int = 0
) -> list[Answer]:
    cdb = write_10(0, blocks).ljust(16, b"\0")
    pdu = ScsiCommand(0x01, FINAL_SIMPLE | WRITE, 0, lun, itt, expected, cdb=cdb)
    return peer.request(pdu, data)


def data_out(r2t: ReadyToTransfer, **fields: Any) -> DataOut:
    return DataOut(
        **{
            "flags": 0x80,
            "lun": r2t.lun,
            "itt": r2t.itt,
            "ttt": r2t.ttt,
            "buffer_offset": r2t.buffer_offset,
            **fields,
        }
    )


class TestAdditionalHeaders:
    def test_11_2_2_3_a_cdb_of_32_bytes(self) -> None:
        target = Target()
        target.held = True
        peer = logged_in(target=target)
        ahs = b"\x00\x11\x01\x00" + bytes(range(16))
        pdu = ScsiCommand(0x01, FINAL_SIMPLE, itt=1, cdb=b"\x7f" + bytes(15))
        assert peer.request(pdu, ahs=ahs) == []
        assert target.commands[0].cdb == b"\x7f" + bytes(15) + bytes(range(16))

    def test_11_2_2_3_a_cdb_whose_end_is_padded(self) -> None:
        target = Target()
        target.held = True
        peer = logged_in(target=target)
        ahs = b"\x00\x03\x01\x00\xaa\xbb\x00\x00"
        peer.request(ScsiCommand(0x01, FINAL_SIMPLE, itt=1), ahs=ahs)
        assert target.commands[0].cdb == bytes(16) + b"\xaa\xbb"

    def test_11_2_2_ahs_and_header_digest(self) -> None:
        target = Target()
        target.held = True
        peer = logged_in(("HeaderDigest", "CRC32C"), target=target)
        peer.request(ScsiCommand(0x01, FINAL_SIMPLE, itt=1), ahs=b"\x00\x05\x01\x00abcd")
        assert target.commands[0].cdb[16:] == b"abcd"

    def test_11_2_2_4_bidirectional_commands_are_refused(self) -> None:
        peer = logged_in()
        pdu = ScsiCommand(0x01, FINAL_SIMPLE | READ | WRITE, 0, 0, 1, 512)
        answers = peer.request(pdu, ahs=b"\x00\x05\x02\x00" + (512).to_bytes(4, "big"))
        ((response, sense),) = answers
        assert isinstance(response, ScsiResponse)
        assert (response.status, sense[2 + 2]) == (2, 5)


class TestDataIn:
    def test_11_7_3_good_status_rides_on_the_last_data_in(self) -> None:
        ((pdu, data),) = read(logged_in(), 1, 512)
        assert isinstance(pdu, DataIn)
        assert (pdu.flags, pdu.status, pdu.residual) == (0x80 | STATUS, 0, 0)
        assert (pdu.ttt, pdu.data_sn, pdu.buffer_offset) == (NO_TAG, 0, 0)
        assert data == bytes(512)

    def test_11_7_1_f_ends_each_burst_and_segments_fit(self) -> None:
        peer = logged_in(("MaxRecvDataSegmentLength", "700"), ("MaxBurstLength", "1024"))
        peer.target.disk.content[:2560] = bytes(range(256)) * 10
        answers = read(peer, 5, 2560)
        assert [len(data) for _, data in answers] == [700, 324, 700, 324, 512]
        assert [pdu.flags for pdu, _ in answers] == [0, 0x80, 0, 0x80, 0x81]
        assert [pdu.data_sn for pdu, _ in answers] == [0, 1, 2, 3, 4]
        assert [pdu.buffer_offset for pdu, _ in answers] == [0, 700, 1024, 1724, 2048]
        assert b"".join(data for _, data in answers) == bytes(range(256)) * 10

    @pytest.mark.parametrize(
        ("blocks", "expected", "flag", "residual"),
        [(1, 1024, UNDERFLOW, 512), (3, 1024, OVERFLOW, 512), (2, 1024, 0, 0)],
    )
    def test_11_4_5_residuals_of_reads(
        self, blocks: int, expected: int, flag: int, residual: int
    ) -> None:
        answers = read(logged_in(), blocks, expected)
        last = answers[-1][0]
        assert (last.flags & 0x06, last.residual) == (flag, residual)
        moved = sum(len(data) for pdu, data in answers if isinstance(pdu, DataIn))
        assert moved == min(expected, blocks * BLOCK_LENGTH)

    def test_11_4_5_a_read_that_expects_nothing_overflows(self) -> None:
        ((response, data),) = read(logged_in(), 1, 0)
        assert isinstance(response, ScsiResponse)
        assert (response.flags & 0x06, response.residual, data) == (OVERFLOW, 512, b"")

    def test_11_4_5_a_failed_read_moved_nothing(self) -> None:
        pdu = ScsiCommand(0x01, FINAL_SIMPLE | READ, 0, 0, 1, 512, cdb=b"\xff" * 16)
        ((response, data),) = logged_in().request(pdu)
        assert isinstance(response, ScsiResponse)
        assert (response.status, response.flags & 0x06, response.residual) == (2, UNDERFLOW, 512)
        assert data == len(INVALID_OPCODE_SENSE).to_bytes(2, "big") + INVALID_OPCODE_SENSE

    def test_11_4_8_exp_data_sn_counts_the_data_in_pdus(self) -> None:
        class FailsLate(Disk):
            def execute(self, command: Command) -> dict[str, Any]:
                return {"status": 2, "data": bytes(1536), "sense": INVALID_OPCODE_SENSE}

        target = Target(disk=FailsLate())
        peer = logged_in(("MaxRecvDataSegmentLength", "512"), target=target)
        answers = read(peer, 4, 2048)
        assert [type(pdu) for pdu, _ in answers] == [DataIn, DataIn, DataIn, ScsiResponse]
        response = answers[-1][0]
        assert (response.exp_data_sn, response.status, response.residual) == (3, 2, 512)
        assert not any(pdu.flags & STATUS for pdu, _ in answers[:-1])


class TestResponse:
    def test_11_4_a_command_without_data(self) -> None:
        ((response, data),) = logged_in().request(ScsiCommand(0x01, FINAL_SIMPLE, itt=0x77))
        assert isinstance(response, ScsiResponse)
        assert (response.flags, response.response, response.status) == (0x80, 0, 0)
        assert (response.itt, response.residual, response.exp_data_sn) == (0x77, 0, 0)
        assert data == b""

    @pytest.mark.parametrize("attribute", range(5))
    def test_11_3_1_every_attribute_reaches_the_device_server(self, attribute: int) -> None:
        target = Target()
        target.held = True
        peer = logged_in(target=target)
        peer.request(ScsiCommand(0x01, 0x80 | attribute, itt=1))
        assert target.commands[0].attribute == attribute

    def test_11_3_1_immediate_commands_with_data(self) -> None:
        peer = logged_in()
        opcode = Opcode.SCSI_COMMAND | IMMEDIATE
        cdb = write_10(0, 1).ljust(16, b"\0")
        pdu = ScsiCommand(opcode, FINAL_SIMPLE | WRITE, 0, 0, 1, 512, cdb=cdb)
        ((r2t, _),) = peer.request(pdu)
        assert r2t.exp_cmd_sn == 1
        ((response, _),) = peer.send(data_out(r2t), b"\x42" * 512)
        assert (response.status, response.exp_cmd_sn, response.max_cmd_sn) == (0, 1, 128)


class TestWrites:
    def test_11_3_4_immediate_data_alone(self) -> None:
        peer = logged_in()
        ((response, _),) = write(peer, 1, 512, b"\x11" * 512)
        assert isinstance(response, ScsiResponse)
        assert (response.status, response.exp_data_sn, response.residual) == (0, 0, 0)
        assert peer.target.disk.content[:512] == b"\x11" * 512

    def test_11_8_r2ts_stay_within_a_burst_and_carry_the_lun(self) -> None:
        peer = logged_in(("MaxBurstLength", "1024"), ("MaxOutstandingR2T", "1"))
        lun = 0x0003_0000_0000_0000
        ((r2t, _),) = write(peer, 5, 2560, lun=lun)
        asked = []
        while isinstance(r2t, ReadyToTransfer):
            assert (r2t.lun, r2t.itt) == (lun, 1)
            assert r2t.ttt != NO_TAG
            asked.append((r2t.r2t_sn, r2t.buffer_offset, r2t.desired_length))
            ((r2t, _),) = peer.send(data_out(r2t), b"\x22" * r2t.desired_length)
        assert asked == [(0, 0, 1024), (1, 1024, 1024), (2, 2048, 512)]
        assert (r2t.status, r2t.exp_data_sn) == (0, 3)
        assert peer.target.disk.content[:2560] == b"\x22" * 2560

    @pytest.mark.parametrize("outstanding", [1, 2, 3])
    def test_13_17_no_more_r2ts_than_agreed(self, outstanding: int) -> None:
        peer = logged_in(("MaxBurstLength", "512"), ("MaxOutstandingR2T", str(outstanding)))
        waiting = [pdu for pdu, _ in write(peer, 8, 4096)]
        assert len(waiting) == outstanding
        assert len({r2t.ttt for r2t in waiting}) == outstanding
        while waiting:
            r2t = waiting.pop(0)
            answers = peer.send(data_out(r2t), b"\x33" * 512)
            waiting += [pdu for pdu, _ in answers if isinstance(pdu, ReadyToTransfer)]
            assert len(waiting) <= outstanding
        assert [type(pdu) for pdu, _ in answers] == [ScsiResponse]
        assert peer.target.disk.content[:4096] == b"\x33" * 4096

    def test_11_7_a_sequence_in_many_pdus(self) -> None:
        peer = logged_in()
        ((r2t, _),) = write(peer, 4, 2048)
        for number in range(3):
            pdu = data_out(r2t, flags=0, data_sn=number, buffer_offset=512 * number)
            assert peer.send(pdu, bytes([number]) * 512) == []
        pdu = data_out(r2t, data_sn=3, buffer_offset=1536)
        ((response, _),) = peer.send(pdu, b"\x03" * 512)
        assert response.status == 0
        assert peer.target.disk.content[:2048:512] == bytes([0, 1, 2, 3])

    def test_11_4_5_a_write_that_expects_too_much_underflows(self) -> None:
        peer = logged_in()
        ((r2t, _),) = write(peer, 1, 1024)
        assert r2t.desired_length == 512
        ((response, _),) = peer.send(data_out(r2t), b"\x44" * 512)
        assert (response.status, response.flags & 0x06, response.residual) == (0, UNDERFLOW, 512)

    def test_11_4_5_a_write_that_expects_too_little_overflows(self) -> None:
        peer = logged_in()
        ((r2t, _),) = write(peer, 2, 512)
        assert r2t.desired_length == 512
        ((response, _),) = peer.send(data_out(r2t), b"\x44" * 512)
        assert (response.flags & 0x06, response.residual) == (OVERFLOW, 512)

    def test_11_3_4_a_refused_write_solicits_nothing(self) -> None:
        pdu = ScsiCommand(0x01, FINAL_SIMPLE | WRITE, 0, 0, 1, 1024, cdb=b"\xff" * 16)
        ((response, _),) = logged_in().request(pdu)
        assert isinstance(response, ScsiResponse)
        assert (response.status, response.flags & 0x06, response.residual) == (2, UNDERFLOW, 1024)

    def test_11_7_4_two_writes_at_once_keep_their_data_apart(self) -> None:
        peer = logged_in()
        first = write(peer, 1, 512, itt=1)[0][0]
        cdb = write_10(1, 1).ljust(16, b"\0")
        pdu = ScsiCommand(0x01, FINAL_SIMPLE | WRITE, 0, 0, 2, 512, cdb=cdb)
        ((second, _),) = peer.request(pdu)
        assert first.ttt != second.ttt
        peer.send(data_out(second), b"\x02" * 512)
        peer.send(data_out(first), b"\x01" * 512)
        assert peer.target.disk.content[:1024] == b"\x01" * 512 + b"\x02" * 512


def test_11_3_a_discovery_session_takes_no_scsi_command() -> None:
    peer = RawPeer()
    peer.login([("InitiatorName", "iqn.2026-11.lab.example:h"), ("SessionType", "Discovery")])
    ((pdu, _),) = peer.request(ScsiCommand(0x01, FINAL_SIMPLE, itt=1))
    assert isinstance(pdu, Reject)
    assert pdu.reason in (RejectReason.COMMAND_NOT_SUPPORTED, RejectReason.PROTOCOL_ERROR)
