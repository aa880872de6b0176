"""Data-out through a whole connection: immediate, unsolicited and solicited, and its failures."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyiscsi_target.iscsi.constants import RESERVED_TAG, RejectReason, TaskManagement
from pyiscsi_target.iscsi.events import ConnectionFailed, TransferFailed, TransferRequested
from pyiscsi_target.iscsi.keys import Limits
from pyiscsi_target.iscsi.pdu import NopOut, ReadyToTransfer, Reject, ScsiResponse, TextRequest
from pyiscsi_target.iscsi.transfer import (
    INCORRECT_AMOUNT_OF_DATA,
    PROTOCOL_SERVICE_CRC_ERROR,
    SOLICITED_LENGTH_MAX,
    UNEXPECTED_UNSOLICITED_DATA,
    Command,
)
from tests.support.memory import (
    BLOCK_LENGTH,
    CHECK_CONDITION,
    GOOD,
    Answer,
    Disk,
    Policy,
    RawPeer,
    Target,
    read_10,
    write_10,
)
from tests.support.pdus import bytes_from, data_out, immediate, manage, read_command, write_command

DIGESTS = [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")]
LARGEST = (1 << 24) - 1


def logged_in(*keys: tuple[str, str], target: Target | None = None) -> RawPeer:
    peer = RawPeer(target or Target(Policy(limits=Limits(first_burst_length=65536))))
    peer.log_in(*keys)
    return peer


def pattern(length: int, seed: int = 0) -> bytes:
    return bytes((seed + number * 7) % 251 for number in range(length))


@dataclass
class Write:
    """One write of an initiator that answers each R2T as it comes."""

    peer: RawPeer
    itt: int
    lba: int
    data: bytes
    segment: int = 8192

    def begin(self, immediate_length: int, unsolicited_end: int) -> list[Answer]:
        """The command and its unsolicited data, in one delivery."""
        blocks = len(self.data) // BLOCK_LENGTH
        final = unsolicited_end <= immediate_length
        pdu = write_command(self.itt, write_10(self.lba, blocks), len(self.data), final=final)
        pdu.cmd_sn = self.peer.cmd_sn
        self.peer.cmd_sn += 1
        stream = bytes_from(self.peer, pdu, self.data[:immediate_length])
        if not final:
            stream += self._sequence(RESERVED_TAG, immediate_length, unsolicited_end)
        return self.peer.send_bytes(stream)

    def answer(self, r2t: ReadyToTransfer) -> list[Answer]:
        end = r2t.buffer_offset + r2t.desired_length
        return self.peer.send_bytes(self._sequence(r2t.ttt, r2t.buffer_offset, end))

    def _sequence(self, ttt: int, start: int, end: int) -> bytes:
        stream = b""
        for data_sn, offset in enumerate(range(start, end, self.segment)):
            following = min(offset + self.segment, end)
            pdu = data_out(self.itt, offset, data_sn, ttt, final=following == end)
            stream += bytes_from(self.peer, pdu, self.data[offset:following])
        return stream

    def finish(self, answers: list[Answer], outstanding: int = 8) -> ScsiResponse:
        """Answer every R2T, oldest first; the response."""
        waiting = list(answers)
        while isinstance(waiting[0][0], ReadyToTransfer):
            assert len(waiting) <= outstanding
            r2t, _ = waiting.pop(0)
            waiting += self.answer(r2t)
        ((response, _),) = waiting
        assert isinstance(response, ScsiResponse)
        return response


class TestCombined:
    @settings(max_examples=60)
    @given(
        blocks=st.integers(1, 40),
        immediate_part=st.integers(0, 100),
        unsolicited_part=st.integers(0, 100),
        segment=st.integers(100, 9000),
        burst=st.integers(512, 8192),
        outstanding=st.integers(1, 8),
        digests=st.booleans(),
    )
    def test_any_mixture_of_data(
        self,
        blocks: int,
        immediate_part: int,
        unsolicited_part: int,
        segment: int,
        burst: int,
        outstanding: int,
        digests: bool,
    ) -> None:
        """Immediate, then unsolicited, then solicited: parts are per cent of what is allowed."""
        first_burst = max(512, burst // 2)
        peer = logged_in(
            ("InitialR2T", "No"),
            ("ImmediateData", "Yes"),
            ("FirstBurstLength", str(first_burst)),
            ("MaxBurstLength", str(burst)),
            ("MaxOutstandingR2T", str(outstanding)),
            *(DIGESTS if digests else []),
        )
        data = pattern(blocks * BLOCK_LENGTH)
        immediate_length = min(len(data), first_burst * immediate_part // 100)
        rest = min(len(data), first_burst) - immediate_length
        write = Write(peer, 1, 3, data, segment)
        answers = write.begin(immediate_length, immediate_length + rest * unsolicited_part // 100)
        response = write.finish(answers, outstanding)
        assert (response.status, response.residual) == (GOOD, 0)
        start = 3 * BLOCK_LENGTH
        assert peer.target.disk.content[start : start + len(data)] == data

    @pytest.mark.parametrize("outstanding", [1, 2, 3, 8])
    def test_as_many_r2ts_at_once_as_agreed(self, outstanding: int) -> None:
        peer = logged_in(
            ("MaxBurstLength", "1024"),
            ("MaxOutstandingR2T", str(outstanding)),
            ("InitialR2T", "Yes"),
        )
        write = Write(peer, 1, 0, pattern(20 * BLOCK_LENGTH))
        answers = write.begin(0, 0)
        assert [pdu.r2t_sn for pdu, _ in answers] == [*range(outstanding)]
        response = write.finish(answers, outstanding)
        assert response.exp_data_sn == 10
        assert peer.target.disk.content[: 20 * BLOCK_LENGTH] == write.data

    def test_writes_whose_data_alternates(self) -> None:
        peer = logged_in(("MaxBurstLength", "1024"))
        writes = [Write(peer, itt, 10 * itt, pattern(4096, itt)) for itt in (1, 2, 3)]
        r2ts = [write.begin(512, 0)[0][0] for write in writes]
        responses: dict[int, ScsiResponse] = {}
        while r2ts:
            r2t = r2ts.pop(0)
            ((answer, _),) = writes[r2t.itt - 1].answer(r2t)
            if isinstance(answer, ScsiResponse):
                responses[answer.itt] = answer
            else:
                r2ts.append(answer)
        assert responses.keys() == {1, 2, 3}
        for write in writes:
            start = write.lba * BLOCK_LENGTH
            assert peer.target.disk.content[start : start + 4096] == write.data

    def test_unsolicited_data_of_a_command_that_came_early(self) -> None:
        peer = logged_in(("InitialR2T", "No"))
        peer.cmd_sn = 2
        early = Write(peer, 2, 0, pattern(4096, 2))
        assert early.begin(512, 4096) == []
        peer.cmd_sn = 1
        answers = Write(peer, 1, 0, pattern(4096, 1)).begin(512, 4096)
        assert [pdu.itt for pdu, _ in answers] == [1, 2]
        assert peer.target.disk.content[:4096] == early.data


def damaged(stream: bytes) -> bytes:
    """The same PDU with its data digest wrong."""
    return stream[:-1] + bytes([stream[-1] ^ 1])


class TestDamage:
    def peer(self, *keys: tuple[str, str]) -> RawPeer:
        return logged_in(*DIGESTS, ("InitialR2T", "No"), ("MaxBurstLength", "1024"), *keys)

    def bad(self, peer: RawPeer, pdu: Any, data: bytes) -> bytes:
        return damaged(bytes_from(peer, pdu, data))

    @staticmethod
    def check(answers: list[Answer]) -> None:
        (reject, _), (response, sense) = answers
        assert isinstance(reject, Reject)
        assert reject.reason == RejectReason.DATA_DIGEST_ERROR
        assert isinstance(response, ScsiResponse)
        assert response.status == CHECK_CONDITION
        assert sense[2:] == PROTOCOL_SERVICE_CRC_ERROR

    def test_in_the_only_data_out(self) -> None:
        peer = self.peer()
        ((r2t, _),) = peer.request(write_command(1, write_10(0, 2), 1024))
        self.check(peer.send_bytes(self.bad(peer, data_out(1, 0, ttt=r2t.ttt), bytes(1024))))
        assert isinstance(peer.target.events[-1], TransferFailed)
        assert not peer.closed

    def test_the_session_goes_on(self) -> None:
        peer = self.peer()
        ((r2t, _),) = peer.request(write_command(1, write_10(0, 2), 1024))
        peer.send_bytes(self.bad(peer, data_out(1, 0, ttt=r2t.ttt), bytes(1024)))
        again = Write(peer, 1, 0, pattern(1024))
        assert again.finish(again.begin(0, 0)).status == GOOD
        assert peer.target.disk.content[:1024] == again.data

    def test_in_unsolicited_data_of_the_same_round(self) -> None:
        """The owner hears of the transfer and of its failure at once: nothing may be solicited."""
        peer = self.peer()
        command = write_command(1, write_10(0, 4), 2048, final=False, cmd_sn=1)
        stream = bytes_from(peer, command, bytes(512))
        bad = self.bad(peer, data_out(1, 512), bytes(512))
        self.check(peer.send_bytes(stream + bad))
        connection = peer.target.connection
        assert connection.command_of(1) is None
        assert not connection._transfers._waiting

    def test_in_the_first_of_many_sequences(self) -> None:
        """The answer waits for every sequence that is open (section 11.4.2), and no more opens."""
        peer = self.peer(("MaxOutstandingR2T", "2"))
        write = Write(peer, 1, 0, pattern(8 * BLOCK_LENGTH))
        (first, _), (second, _) = write.begin(0, 0)
        answers = peer.send_bytes(self.bad(peer, data_out(1, 0, ttt=first.ttt), write.data[:1024]))
        assert [type(pdu) for pdu, _ in answers] == [Reject]
        self.check(answers + write.answer(second))
        assert not any(peer.target.disk.content)

    def test_of_no_command(self) -> None:
        peer = self.peer()
        assert peer.send_bytes(self.bad(peer, data_out(9, 0, ttt=5), bytes(512))) == []
        assert not peer.closed

    def test_in_data_of_a_command_that_came_early(self) -> None:
        """It fails before its turn, which ends the session: the owner is not asked about it."""
        peer = self.peer()
        early = write_command(2, write_10(0, 2), 1024, final=False, cmd_sn=2)
        assert peer.send(early) == []
        answers = peer.send_bytes(self.bad(peer, data_out(2, 0, final=False), bytes(512)))
        assert [type(pdu) for pdu, _ in answers] == [Reject, Reject]
        assert isinstance(peer.target.events[-1], ConnectionFailed)
        assert not any(isinstance(event, TransferRequested) for event in peer.target.events)

    @pytest.mark.parametrize("data", [b"ping", b"x" * 5000])
    @pytest.mark.parametrize("pdu", [NopOut(itt=1, cmd_sn=1), TextRequest(itt=1, cmd_sn=1)])
    def test_in_a_request(self, pdu: Any, data: bytes) -> None:
        peer = self.peer()
        ((reject, header),) = peer.send_bytes(self.bad(peer, pdu, data))
        assert isinstance(reject, Reject)
        assert (reject.reason, reject.exp_cmd_sn) == (RejectReason.DATA_DIGEST_ERROR, 1)
        assert header == pdu.pack()

    @pytest.mark.parametrize("expected", [512, 1024])
    def test_in_immediate_data(self, expected: int) -> None:
        """The command was not received: it may be sent again (section 7.8)."""
        peer = self.peer()
        pdu = write_command(1, write_10(0, 1), expected, cmd_sn=1)
        ((reject, _),) = peer.send_bytes(self.bad(peer, pdu, pattern(512)))
        assert isinstance(reject, Reject)
        assert reject.exp_cmd_sn == 1
        ((response, _),) = peer.send(pdu, pattern(512))
        assert response.status == GOOD


class TestRefusal:
    """Data that does not come as was agreed ends the command, not the session (11.4.7.2)."""

    @pytest.mark.parametrize(
        ("keys", "expected", "length", "sense"),
        [
            ([("ImmediateData", "No")], 512, 512, UNEXPECTED_UNSOLICITED_DATA),
            ([("FirstBurstLength", "512")], 1024, 1024, INCORRECT_AMOUNT_OF_DATA),
            ([], 512, 1024, INCORRECT_AMOUNT_OF_DATA),
            ([], 0, 4, INCORRECT_AMOUNT_OF_DATA),
        ],
    )
    def test_immediate_data(
        self, keys: list[tuple[str, str]], expected: int, length: int, sense: bytes
    ) -> None:
        peer = logged_in(*keys)
        pdu = write_command(1, write_10(0, 2), expected)
        ((response, segment),) = peer.request(pdu, bytes(length))
        assert (response.status, segment[2:]) == (CHECK_CONDITION, sense)
        assert response.residual == expected

    def test_data_of_a_command_that_writes_nothing(self) -> None:
        peer = logged_in()
        ((response, segment),) = peer.request(read_command(1, read_10(0, 1), 512), bytes(4))
        assert (response.status, segment[2:]) == (CHECK_CONDITION, UNEXPECTED_UNSOLICITED_DATA)

    def test_unsolicited_data_that_was_not_agreed_on(self) -> None:
        peer = logged_in(("InitialR2T", "Yes"))
        pdu = write_command(1, write_10(0, 1), 512, final=False)
        assert peer.request(pdu) == [], "the answer waits for the data"
        ((response, segment),) = peer.send(data_out(1, 0), bytes(512))
        assert (response.status, segment[2:]) == (CHECK_CONDITION, UNEXPECTED_UNSOLICITED_DATA)
        assert not any(isinstance(event, TransferRequested) for event in peer.target.events)


class TestRoom:
    """SOLICITED_LENGTH_MAX bounds what is under way; what ends must make room."""

    def begun(self, count: int) -> tuple[RawPeer, list[Answer]]:
        """Writes that each fill the bound; the answers to the first."""
        limits = Limits(max_burst_length=LARGEST, first_burst_length=512)
        disk = Disk(asks=lambda command: SOLICITED_LENGTH_MAX)
        peer = logged_in(
            ("MaxBurstLength", str(LARGEST)),
            ("MaxOutstandingR2T", "8"),
            target=Target(Policy(limits=limits), disk),
        )
        answers = [
            peer.request(write_command(itt, write_10(0, 1), SOLICITED_LENGTH_MAX))
            for itt in range(1, count + 1)
        ]
        assert not any(answers[1:])
        return peer, answers[0]

    def abort(self, peer: RawPeer, tag: int) -> list[int]:
        """Who is asked for data because of an abort."""
        request = manage(TaskManagement.ABORT_TASK, 99, referenced_task_tag=tag, ref_cmd_sn=tag)
        answers = peer.request(immediate(request))
        return [pdu.itt for pdu, _ in answers if isinstance(pdu, ReadyToTransfer)]

    def test_an_abort_lets_the_next_command_ask(self) -> None:
        peer, r2ts = self.begun(2)
        assert sum(pdu.desired_length for pdu, _ in r2ts) == SOLICITED_LENGTH_MAX
        assert set(self.abort(peer, 1)) == {2}

    def test_what_waits_and_is_aborted_is_not_asked_for(self) -> None:
        peer, _ = self.begun(2)
        assert self.abort(peer, 2) == []
        assert self.abort(peer, 1) == []

    def test_what_waits_and_is_answered_is_not_asked_for(self) -> None:
        peer, _ = self.begun(2)
        connection = peer.target.connection
        waiting = connection.command_of(2)
        assert isinstance(waiting, Command)
        connection.respond(waiting, CHECK_CONDITION, sense=PROTOCOL_SERVICE_CRC_ERROR)
        assert waiting not in connection._transfers._waiting
