"""Answers to buffers: splitting, collapsed status, residuals, digests and numbers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.iscsi.constants import FINAL, RESERVED_TAG, DataInFlag
from pyiscsi_target.iscsi.pdu import DataIn, NopIn, ScsiResponse
from pyiscsi_target.iscsi.responses import ResponseWriter
from pyiscsi_target.iscsi.session import CommandWindow
from pyiscsi_target.iscsi.transfer import Command, Transfer
from tests.support.memory import CHECK_CONDITION, GOOD, INVALID_OPCODE_SENSE, Answer, decode_stream

READ, WRITE, NO_DATA = 0xC1, 0xA1, 0x81
STATUS, UNDERFLOW, OVERFLOW = DataInFlag.STATUS, DataInFlag.UNDERFLOW, DataInFlag.OVERFLOW
WRAP = 1 << 32
FIRST_STAT_SN = 100


def command(flags: int, expected_length: int) -> Command:
    return Command(7, 0x0001000000000000, bytes(16), flags, expected_length, 1)


class Subject:
    """A writer and what it has queued, decoded."""

    def __init__(
        self,
        segment: int = 8192,
        burst: int = 262144,
        stat_sn: int = FIRST_STAT_SN,
        **digests: bool,
    ) -> None:
        self.writer = ResponseWriter(stat_sn)
        self.writer.window = CommandWindow(2, 8)
        self.writer.limit_lengths(segment, burst)
        self.digests = digests
        for name, active in digests.items():
            setattr(self.writer, name, active)

    def respond(self, to: Command, status: int = GOOD, **result: Any) -> list[Answer]:
        self.writer.respond(to, status, **result)
        return self.sent()

    def sent(self) -> list[Answer]:
        stream = b"".join(self.writer.outgoing)
        self.writer.outgoing.clear()
        return decode_stream(stream, **self.digests)


def pattern(length: int) -> bytes:
    return (bytes(range(251)) * (length // 251 + 1))[:length]


class TestDataIn:
    @given(
        length=st.integers(1, 3000),
        expected=st.integers(1, 3000),
        segment=st.integers(1, 1200),
        burst=st.integers(1, 1500),
        collapse=st.booleans(),
    )
    def test_any_split(
        self, length: int, expected: int, segment: int, burst: int, collapse: bool
    ) -> None:
        subject, data = Subject(segment, burst), pattern(length)
        status = GOOD if collapse else CHECK_CONDITION
        answers = subject.respond(command(READ, expected), status, data=data)
        if not collapse:
            assert isinstance(answers.pop()[0], ScsiResponse)
        moved = min(length, expected)
        assert b"".join(piece for _, piece in answers) == data[:moved]
        offset = in_burst = 0
        for data_sn, (pdu, piece) in enumerate(answers):
            assert isinstance(pdu, DataIn)
            assert (pdu.data_sn, pdu.buffer_offset) == (data_sn, offset)
            assert 0 < len(piece) <= segment
            offset += len(piece)
            in_burst += len(piece)
            assert in_burst <= burst
            ends_burst = in_burst == burst or offset == moved
            assert bool(pdu.flags & FINAL) is ends_burst
            assert bool(pdu.flags & STATUS) is (collapse and offset == moved)
            if ends_burst:
                in_burst = 0

    def test_the_common_case_is_one_header_and_the_data_itself(self) -> None:
        subject, data = Subject(), bytearray(4096)
        subject.writer.respond(command(READ, 4096), GOOD, data)
        header, sent = subject.writer.outgoing
        assert len(header) == 48
        assert sent is data

    @pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5])
    def test_padding(self, length: int) -> None:
        subject = Subject()
        subject.writer.respond(command(READ, length), GOOD, pattern(length))
        assert sum(map(len, subject.writer.outgoing)) % 4 == 0
        answers = subject.sent()
        assert b"".join(data for _, data in answers) == pattern(length)

    @pytest.mark.parametrize("length", [10, 8192, 8193])
    def test_what_is_without_status_has_none_of_its_fields(self, length: int) -> None:
        subject = Subject()
        *others, (last, _) = subject.respond(command(READ, length), data=pattern(length))
        for pdu, _ in others:
            assert (pdu.stat_sn, pdu.status, pdu.residual) == (0, 0, 0)
            assert not pdu.flags & (UNDERFLOW | OVERFLOW)
        assert last.stat_sn == FIRST_STAT_SN
        assert (last.lun, last.ttt, last.itt) == (0, RESERVED_TAG, 7)


class TestResiduals:
    """Section 11.4.5; the same in a Data-In with status (11.7.3) and in a SCSI Response."""

    CASES = pytest.mark.parametrize(
        ("flags", "expected", "result", "residual_flag", "residual"),
        [
            (READ, 512, {"data": bytes(512)}, 0, 0),
            (READ, 512, {"data": bytes(100)}, UNDERFLOW, 412),
            (READ, 100, {"data": bytes(512)}, OVERFLOW, 412),
            (READ, 512, {"data": b""}, UNDERFLOW, 512),
            (READ, 512, {}, UNDERFLOW, 512),
            (READ, 0, {"data": bytes(512)}, OVERFLOW, 512),
            (READ, 0, {}, 0, 0),
            (NO_DATA, 0, {}, 0, 0),
            (NO_DATA, 0, {"data": bytes(36)}, OVERFLOW, 36),
            (WRITE, 512, {}, 0, 0),
            (WRITE, 512, {"data_out_length": 512}, 0, 0),
            (WRITE, 512, {"data_out_length": 100}, UNDERFLOW, 412),
            (WRITE, 100, {"data_out_length": 512}, OVERFLOW, 412),
            (WRITE, 512, {"data_out_length": 0}, UNDERFLOW, 512),
            (WRITE, 0, {"data_out_length": 0}, 0, 0),
        ],
    )

    @CASES
    @pytest.mark.parametrize("status", [GOOD, CHECK_CONDITION])
    def test_residual(
        self,
        flags: int,
        expected: int,
        result: dict[str, Any],
        residual_flag: int,
        residual: int,
        status: int,
    ) -> None:
        *_, (last, _) = Subject().respond(command(flags, expected), status, **result)
        assert last.flags & (OVERFLOW | UNDERFLOW) == residual_flag
        assert last.residual == residual
        assert last.status == status

    def test_never_both_nor_the_bidirectional_ones(self) -> None:
        ((response, _),) = Subject().respond(command(WRITE, 5), data_out_length=9)
        assert response.flags == FINAL | OVERFLOW
        assert response.bidirectional_read_residual == 0


class TestResponse:
    @pytest.mark.parametrize("status", [0x02, 0x08, 0x18, 0x28, 0x40])
    def test_other_status_stands_in_a_response_of_its_own(self, status: int) -> None:
        ((response, data),) = Subject().respond(command(READ, 512), status)
        assert isinstance(response, ScsiResponse)
        assert (response.status, response.response, data) == (status, 0, b"")

    def test_sense_data_has_its_length_before_it(self) -> None:
        ((_, segment),) = Subject().respond(
            command(READ, 512), CHECK_CONDITION, sense=INVALID_OPCODE_SENSE
        )
        assert segment == len(INVALID_OPCODE_SENSE).to_bytes(2, "big") + INVALID_OPCODE_SENSE

    @pytest.mark.parametrize(("length", "count"), [(0, 0), (1, 1), (512, 1), (513, 2), (2048, 4)])
    def test_exp_data_sn_counts_the_data_in(self, length: int, count: int) -> None:
        *data_in, (response, _) = Subject(512).respond(
            command(READ, 4096), CHECK_CONDITION, data=bytes(length), sense=INVALID_OPCODE_SENSE
        )
        assert response.exp_data_sn == len(data_in) == count

    def test_exp_data_sn_counts_the_r2ts_of_a_write(self) -> None:
        write = command(WRITE, 512)
        write.transfer = Transfer(0, 0)
        write.transfer.next_r2t_sn = 3
        ((response, _),) = Subject().respond(write)
        assert response.exp_data_sn == 3


class TestNumbers:
    @pytest.mark.parametrize("credit", [0, 1])
    @pytest.mark.parametrize(
        "result", [{"data": bytes(512)}, {"data": bytes(100)}, {"status": CHECK_CONDITION}, {}]
    )
    def test_an_answer_opens_the_window_by_its_credit(
        self, credit: int, result: dict[str, Any]
    ) -> None:
        subject, read = Subject(), command(READ, 512)
        read.credit = credit
        before = subject.writer.window.max_cmd_sn
        *_, (last, _) = subject.respond(read, **result)
        assert last.exp_cmd_sn == 2
        assert last.max_cmd_sn == subject.writer.window.max_cmd_sn == before + credit

    @pytest.mark.parametrize("length", [512, 8192 * 3])
    def test_stat_sn_wraps(self, length: int) -> None:
        subject = Subject(stat_sn=WRAP - 1)
        stat_sns = [
            subject.respond(command(READ, length), data=bytes(length))[-1][0].stat_sn
            for _ in range(2)
        ]
        assert stat_sns == [WRAP - 1, 0]

    def test_max_cmd_sn_wraps(self) -> None:
        subject = Subject()
        subject.writer.window = CommandWindow(WRAP - 1, 1)
        ((data_in, _),) = subject.respond(command(READ, 4), data=bytes(4))
        assert (data_in.exp_cmd_sn, data_in.max_cmd_sn) == (WRAP - 1, 0)

    def test_every_other_pdu_is_numbered_by_queue(self) -> None:
        subject = Subject()
        subject.writer.queue(NopIn(itt=3, stat_sn=subject.writer.next_stat_sn()), b"ping!")
        ((nop_in, data),) = subject.sent()
        assert (nop_in.stat_sn, nop_in.exp_cmd_sn, nop_in.max_cmd_sn) == (FIRST_STAT_SN, 2, 9)
        assert data == b"ping!"
        assert subject.writer.stat_sn == FIRST_STAT_SN + 1


@pytest.mark.parametrize("header_digest", [False, True])
@pytest.mark.parametrize("data_digest", [False, True])
@pytest.mark.parametrize(
    "result",
    [
        {"data": pattern(5)},
        {"data": pattern(512)},
        {"data": memoryview(pattern(2000))},
        {"status": CHECK_CONDITION, "sense": INVALID_OPCODE_SENSE},
        {},
    ],
)
def test_digests(header_digest: bool, data_digest: bool, result: dict[str, Any]) -> None:
    """`decode_stream` checks every digest, padding included."""
    plain = Subject(512).respond(command(READ, 1999), **result)
    subject = Subject(512, header_digest=header_digest, data_digest=data_digest)
    assert subject.respond(command(READ, 1999), **result) == plain
