"""Aborts, and the command window that they must neither close nor widen."""

from typing import Any

import pytest

from pyiscsi_target.iscsi.constants import (
    RejectReason,
    TaskManagement,
    TaskManagementResponse,
)
from pyiscsi_target.iscsi.pdu import (
    DataIn,
    ReadyToTransfer,
    Reject,
    TaskManagementResult,
    TextRequest,
)
from pyiscsi_target.iscsi.session import serial_distance
from tests.support.memory import (
    BLOCK_LENGTH,
    Answer,
    Policy,
    RawPeer,
    Target,
    read_10,
    write_10,
)
from tests.support.pdus import data_out, immediate, manage, read_command, write_command

DEPTH = 4
ABORT_TASK = TaskManagement.ABORT_TASK


def logged_in(*keys: tuple[str, str], held: bool = False) -> RawPeer:
    peer = RawPeer(Target(Policy(queue_depth=DEPTH)))
    peer.log_in(*keys)
    peer.target.held = held
    return peer


def width(pdu: Any) -> int:
    """How many commands the window that this PDU shows would take."""
    return serial_distance(pdu.max_cmd_sn + 1, pdu.exp_cmd_sn)


def abort(peer: RawPeer, tag: int, ref_cmd_sn: int, itt: int = 99) -> list[Answer]:
    request = manage(ABORT_TASK, itt, referenced_task_tag=tag, ref_cmd_sn=ref_cmd_sn)
    return peer.request(immediate(request))


def result_of(answers: list[Answer]) -> TaskManagementResult:
    ((result, _),) = answers
    assert isinstance(result, TaskManagementResult)
    return result


def read(itt: int, cmd_sn: int) -> Any:
    return read_command(itt, read_10(0, 1), BLOCK_LENGTH, cmd_sn=cmd_sn)


class TestWindow:
    def test_an_abort_that_fills_a_gap_keeps_the_window_open(self) -> None:
        """Section 11.5.1: the command that never came counts as received, and as ended."""
        peer = logged_in()
        for cmd_sn in range(1, 3 * DEPTH):
            peer.cmd_sn = cmd_sn + 1
            result = result_of(abort(peer, tag=50, ref_cmd_sn=cmd_sn))
            assert result.response == TaskManagementResponse.FUNCTION_COMPLETE
            assert (result.exp_cmd_sn, width(result)) == (cmd_sn + 1, DEPTH)

    def test_aborting_early_commands_does_not_widen_the_window(self) -> None:
        peer = logged_in()
        for _ in range(3):
            for cmd_sn in range(2, DEPTH + 1):
                peer.send(read(cmd_sn, cmd_sn))
                result = result_of(abort(peer, tag=cmd_sn, ref_cmd_sn=cmd_sn))
                assert result.exp_cmd_sn == 1
                assert width(result) <= DEPTH

    def test_an_aborted_early_command_is_skipped(self) -> None:
        peer = logged_in()
        peer.send(read(2, 2))
        peer.send(read(3, 3))
        abort(peer, tag=2, ref_cmd_sn=2)
        answers = peer.send(read(1, 1))
        assert [pdu.itt for pdu, _ in answers] == [1, 3]
        assert width(answers[-1][0]) == DEPTH

    def test_an_aborted_command_gives_its_credit_back(self) -> None:
        peer = logged_in(held=True)
        for cmd_sn in range(1, DEPTH + 1):
            assert peer.send(read(cmd_sn, cmd_sn)) == []
        results = [result_of(abort(peer, cmd_sn, cmd_sn)) for cmd_sn in range(1, DEPTH + 1)]
        assert [width(result) for result in results] == [1, 2, 3, 4]

    def test_a_rejected_text_gives_no_credit(self) -> None:
        peer = logged_in()
        for itt in range(1, 3 * DEPTH):
            ((reject, _),) = peer.send(TextRequest(itt=itt, cmd_sn=1), b"junk\0")
            assert isinstance(reject, Reject)
            assert (reject.exp_cmd_sn, width(reject)) == (1, DEPTH)

    @pytest.mark.parametrize("function", [5, 6, 8, 9, 99])
    def test_every_management_request_gives_its_credit_back(self, function: int) -> None:
        peer = logged_in()
        for cmd_sn in range(1, 2 * DEPTH):
            result = result_of(peer.request(manage(function, 60)))
            assert (result.exp_cmd_sn, width(result)) == (cmd_sn + 1, DEPTH)


class TestAbortInTransfer:
    def begun(self) -> tuple[RawPeer, ReadyToTransfer]:
        """A write of four blocks of which two are asked for."""
        peer = logged_in(("MaxBurstLength", "1024"), ("InitialR2T", "Yes"))
        ((r2t, _),) = peer.request(write_command(1, write_10(0, 4), 4 * BLOCK_LENGTH))
        assert isinstance(r2t, ReadyToTransfer)
        return peer, r2t

    def test_no_answer_and_no_more_r2ts(self) -> None:
        peer, r2t = self.begun()
        result = result_of(abort(peer, tag=1, ref_cmd_sn=1))
        assert result.response == TaskManagementResponse.FUNCTION_COMPLETE
        assert width(result) == DEPTH
        assert peer.send(data_out(1, 0, ttt=r2t.ttt), b"x" * 1024) == []
        assert not peer.closed
        assert not any(peer.target.disk.content)

    def test_nothing_of_it_is_kept(self) -> None:
        peer, r2t = self.begun()
        peer.send(data_out(1, 0, ttt=r2t.ttt, final=False), b"x" * 512)
        abort(peer, tag=1, ref_cmd_sn=1)
        connection = peer.target.connection
        assert connection.command_of(1) is None
        assert connection._transfers._under_way == 0
        assert not connection._transfers._waiting

    def test_its_tag_may_be_used_again(self) -> None:
        peer, _ = self.begun()
        abort(peer, tag=1, ref_cmd_sn=1)
        ((data_in, _),) = peer.request(read_command(1, read_10(0, 1), BLOCK_LENGTH))
        assert isinstance(data_in, DataIn)

    def test_aborted_twice(self) -> None:
        peer, _ = self.begun()
        abort(peer, tag=1, ref_cmd_sn=1)
        result = result_of(abort(peer, tag=1, ref_cmd_sn=1))
        assert result.response == TaskManagementResponse.TASK_DOES_NOT_EXIST
        assert width(result) == DEPTH


class TestTags:
    def test_a_tag_in_use_is_rejected_and_the_first_task_goes_on(self) -> None:
        peer = logged_in(held=True)
        peer.request(read(1, 1))
        ((reject, _),) = peer.send(read(1, 2))
        assert isinstance(reject, Reject)
        assert reject.reason == RejectReason.TASK_IN_PROGRESS
        (command,) = peer.target.commands
        assert peer.target.answer(command)
        peer.target.held = False
        ((data_in, _),) = peer.send(read(1, 2))
        assert data_in.exp_cmd_sn == 3

    @pytest.mark.parametrize("write", [False, True])
    def test_the_reserved_tag_is_no_task(self, write: bool) -> None:
        peer = logged_in()
        pdu = write_command(0xFFFFFFFF, write_10(0, 1), BLOCK_LENGTH) if write else read(0, 1)
        pdu.itt = 0xFFFFFFFF
        ((answer, _),) = peer.request(pdu, bytes(BLOCK_LENGTH) if write else b"")
        assert isinstance(answer, Reject)
