"""RFC 7143 section 4.2: command and status numbering, and what affects whole sets of tasks."""

import pytest

from pyiscsi_target.iscsi.constants import IMMEDIATE, Opcode, TaskManagement
from pyiscsi_target.iscsi.pdu import (
    DataIn,
    DataOut,
    LogoutRequest,
    NopIn,
    NopOut,
    ReadyToTransfer,
    Reject,
    ScsiCommand,
    ScsiResponse,
    TaskManagementRequest,
    TaskManagementResult,
    TextRequest,
)
from pyiscsi_target.iscsi.text import encode_pairs
from tests.support.memory import (
    BLOCK_LENGTH,
    DISCOVERY_NAMES,
    Policy,
    RawPeer,
    Target,
    read_10,
    write_10,
)

TUR = bytes(16)
READ_FLAGS = 0xC1
WRITE_FLAGS = 0xA1  # F, W, SIMPLE
WRITE_MORE_FLAGS = 0x21  # unsolicited Data-Out follows
PING = Opcode.NOP_OUT | IMMEDIATE


def logged_in(target: Target | None = None, *keys: tuple[str, str]) -> RawPeer:
    peer = RawPeer(target)
    peer.log_in(*keys)
    return peer


def command(itt: int, cmd_sn: int, *, immediate: bool = False) -> ScsiCommand:
    opcode = Opcode.SCSI_COMMAND | (IMMEDIATE if immediate else 0)
    return ScsiCommand(opcode, 0x81, itt=itt, cmd_sn=cmd_sn, cdb=TUR)


class TestCommandNumbering:
    def test_4_2_2_1_exp_cmd_sn_counts_what_arrived(self) -> None:
        peer = logged_in()
        ((response, _),) = peer.send(command(1, 1))
        assert response.exp_cmd_sn == 2

    @pytest.mark.parametrize(
        "request_pdu",
        [
            NopOut(itt=1, cmd_sn=1),
            TextRequest(itt=1, cmd_sn=1),
            TaskManagementRequest(itt=1, cmd_sn=1, flags=0x80 | TaskManagement.LOGICAL_UNIT_RESET),
            LogoutRequest(itt=1, cmd_sn=1),
            ScsiCommand(itt=1, cmd_sn=1, cdb=b"\xff" * 16),
        ],
    )
    def test_4_2_2_1_an_answer_acknowledges_its_own_request(self, request_pdu: object) -> None:
        peer = logged_in()
        ((response, _),) = peer.send(request_pdu)  # type: ignore[arg-type]
        assert response.exp_cmd_sn == 2

    @pytest.mark.parametrize("cmd_sn", [0, 129, 130, 0x80000001])
    def test_4_2_2_1_outside_the_window_is_silently_ignored(self, cmd_sn: int) -> None:
        peer = logged_in()
        assert peer.send(command(1, cmd_sn)) == []
        assert peer.target.events[1:] == []
        assert not peer.closed

    def test_4_2_2_1_a_duplicate_is_silently_ignored(self) -> None:
        peer = logged_in()
        assert len(peer.send(command(1, 1))) == 1
        assert peer.send(command(2, 1)) == []
        assert peer.send(command(3, 5)) == []
        assert peer.send(command(4, 5)) == []

    def test_4_2_2_1_commands_are_delivered_in_order(self) -> None:
        peer = logged_in()
        assert peer.send(command(3, 3)) == []
        assert peer.send(command(2, 2)) == []
        answers = peer.send(command(1, 1))
        assert [pdu.itt for pdu, _ in answers] == [1, 2, 3]
        assert answers[-1][0].exp_cmd_sn == 4

    def test_4_2_2_1_immediate_commands_do_not_wait_and_do_not_count(self) -> None:
        peer = logged_in()
        ((response, _),) = peer.send(command(9, 1, immediate=True))
        assert (response.itt, response.exp_cmd_sn) == (9, 1)
        ((response, _),) = peer.send(command(10, 77777, immediate=True))
        assert response.itt == 10
        assert response.exp_cmd_sn == 1

    def test_4_2_2_1_cmd_sn_wraps(self) -> None:
        peer = RawPeer()
        peer.cmd_sn = 0xFFFFFFFF
        peer.log_in()
        for itt, cmd_sn in enumerate((0xFFFFFFFF, 0, 1), 1):
            ((response, _),) = peer.send(command(itt, cmd_sn))
            assert response.itt == itt

    def test_4_2_2_1_max_cmd_sn_bounds_what_is_outstanding(self) -> None:
        target = Target(Policy(queue_depth=4))
        peer = logged_in(target)
        target.held = True
        for itt in range(1, 6):
            assert peer.send(command(itt, itt)) == []
        assert [held.itt for held in target.commands] == [1, 2, 3, 4]
        first = target.answer(target.commands[0])
        assert first
        peer.send(command(5, 5))
        assert [held.itt for held in target.commands] == [2, 3, 4, 5]

    def test_4_2_2_1_max_cmd_sn_never_goes_back(self) -> None:
        peer = logged_in()
        seen = []
        for itt in range(1, 20):
            pdu = command(itt, itt // 2 + 1, immediate=bool(itt % 2))
            seen += [answer.max_cmd_sn for answer, _ in peer.send(pdu)]
        assert len(seen) >= 10
        assert seen == sorted(seen)


class TestStatusNumbering:
    def test_4_2_2_2_every_status_takes_one_number(self) -> None:
        peer = logged_in()
        requests = [
            NopOut(PING, itt=1, cmd_sn=1),
            command(2, 1),
            ScsiCommand(0x01, READ_FLAGS, 0, 0, 3, 512, 2, cdb=read_10(0, 1).ljust(16, b"\0")),
            TextRequest(itt=4, cmd_sn=3),
            TaskManagementRequest(0x42, 0x82, itt=5, cmd_sn=4),
            NopOut(0x10, itt=6),  # SNACK: rejected
            LogoutRequest(0x46, 0x80, itt=7, cmd_sn=4),
        ]
        numbers = [pdu.stat_sn for request in requests for pdu, _ in peer.send(request)]
        assert numbers == list(range(peer.exp_stat_sn, peer.exp_stat_sn + len(requests)))

    def test_4_2_2_2_a_ping_of_the_target_takes_none(self) -> None:
        peer = logged_in()
        assert peer.target.connection.ping()
        ((ping, _),) = peer.send_bytes(b"")
        assert isinstance(ping, NopIn)
        assert ping.stat_sn == peer.exp_stat_sn
        ((answer, _),) = peer.send(command(1, 1))
        assert answer.stat_sn == peer.exp_stat_sn

    def test_11_8_3_an_r2t_takes_none(self) -> None:
        peer = logged_in()
        cdb = write_10(0, 1).ljust(16, b"\0")
        ((r2t, _),) = peer.send(ScsiCommand(0x01, WRITE_FLAGS, 0, 0, 1, 512, 1, cdb=cdb))
        assert isinstance(r2t, ReadyToTransfer)
        assert r2t.stat_sn == peer.exp_stat_sn
        ((answer, _),) = peer.send(DataOut(flags=0x80, itt=1, ttt=r2t.ttt), bytes(512))
        assert isinstance(answer, ScsiResponse)
        assert answer.stat_sn == peer.exp_stat_sn

    def test_11_7_4_data_in_without_status_carries_none(self) -> None:
        peer = logged_in(None, ("MaxRecvDataSegmentLength", "512"))
        cdb = read_10(0, 3).ljust(16, b"\0")
        answers = peer.send(ScsiCommand(0x01, READ_FLAGS, 0, 0, 1, 1536, 1, cdb=cdb))
        assert [type(pdu) for pdu, _ in answers] == [DataIn] * 3
        assert [(pdu.flags & 1, pdu.stat_sn) for pdu, _ in answers] == [
            (0, 0),
            (0, 0),
            (1, peer.exp_stat_sn),
        ]


class TestTaskSets:
    def write(self, peer: RawPeer, itt: int, blocks: int) -> ReadyToTransfer:
        length = blocks * BLOCK_LENGTH
        cdb = write_10(0, blocks).ljust(16, b"\0")
        pdu = ScsiCommand(0x01, WRITE_FLAGS, 0, 0, itt, length, cdb=cdb)
        ((r2t, _),) = peer.request(pdu)
        assert isinstance(r2t, ReadyToTransfer)
        return r2t

    def test_4_2_3_3_no_answer_follows_the_task_management_response(self) -> None:
        target = Target()
        peer = logged_in(target)
        target.held = True
        assert peer.request(ScsiCommand(0x01, 0x81, itt=1)) == []
        abort = TaskManagementRequest(0x42, 0x80 | TaskManagement.ABORT_TASK_SET, itt=2)
        ((response, _),) = peer.request(abort)
        assert isinstance(response, TaskManagementResult)
        assert target.commands == []
        ((answer, _),) = peer.request(NopOut(PING, itt=3))
        assert isinstance(answer, NopIn)

    @pytest.mark.parametrize(
        "function",
        [
            TaskManagement.ABORT_TASK_SET,
            TaskManagement.CLEAR_TASK_SET,
            TaskManagement.LOGICAL_UNIT_RESET,
        ],
    )
    def test_4_2_3_3_solicited_data_that_still_comes_is_discarded(
        self, function: TaskManagement
    ) -> None:
        peer = logged_in()
        r2t = self.write(peer, 1, 2)
        ((response, _),) = peer.request(TaskManagementRequest(0x42, 0x80 | function, itt=2))
        assert isinstance(response, TaskManagementResult)
        assert response.response == 0
        half = DataOut(flags=0, itt=1, ttt=r2t.ttt)
        assert peer.send(half, b"\x55" * 512) == []
        rest = DataOut(flags=0x80, itt=1, ttt=r2t.ttt, data_sn=1, buffer_offset=512)
        assert peer.send(rest, b"\x55" * 512) == []
        assert not any(peer.target.disk.content[:1024])
        ((answer, _),) = peer.request(ScsiCommand(0x01, 0x81, itt=1))
        assert answer.status == 0

    def test_4_2_3_late_data_of_an_aborted_task_does_no_harm(self) -> None:
        peer = logged_in()
        r2t = self.write(peer, 1, 1)
        abort = TaskManagementRequest(
            0x42, 0x81, itt=2, referenced_task_tag=1, ref_cmd_sn=peer.cmd_sn - 1
        )
        ((response, _),) = peer.request(abort)
        assert response.response == 0
        assert peer.send(DataOut(flags=0x80, itt=1, ttt=r2t.ttt), b"\x55" * 512) == []
        assert not peer.closed
        assert not any(peer.target.disk.content[:512])


class TestUnsolicitedData:
    """Section 4.2.5.2."""

    def test_4_2_5_2_immediate_and_unsolicited_data_reach_the_first_burst(self) -> None:
        peer = logged_in(None, ("InitialR2T", "No"), ("FirstBurstLength", "1024"))
        cdb = write_10(0, 3).ljust(16, b"\0")
        pdu = ScsiCommand(0x01, WRITE_MORE_FLAGS, 0, 0, 1, 1536, cdb=cdb)
        assert peer.request(pdu, b"a" * 512) == []
        ((r2t, _),) = peer.send(
            DataOut(flags=0x80, itt=1, buffer_offset=512, data_sn=0), b"b" * 512
        )
        assert (r2t.buffer_offset, r2t.desired_length, r2t.r2t_sn) == (1024, 512, 0)
        ((response, _),) = peer.send(
            DataOut(flags=0x80, itt=1, ttt=r2t.ttt, buffer_offset=1024), b"c" * 512
        )
        assert (response.status, response.exp_data_sn) == (0, 1)
        assert peer.target.disk.content[:1536] == b"a" * 512 + b"b" * 512 + b"c" * 512

    @pytest.mark.parametrize(
        ("keys", "flags", "data"),
        [
            ([("ImmediateData", "No")], WRITE_FLAGS, bytes(512)),
            ([("InitialR2T", "Yes")], WRITE_MORE_FLAGS, b""),
        ],
    )
    def test_11_4_7_2_unsolicited_data_that_was_not_agreed_on(
        self, keys: list[tuple[str, str]], flags: int, data: bytes
    ) -> None:
        peer = logged_in(None, *keys)
        cdb = write_10(0, 1).ljust(16, b"\0")
        answers = peer.request(ScsiCommand(0x01, flags, 0, 0, 1, 512, cdb=cdb), data)
        if not answers:  # announced unsolicited data is awaited first (11.4.2)
            answers = peer.send(DataOut(flags=0x80, itt=1), bytes(512))
        ((response, sense),) = answers
        assert response.status == 2
        assert (sense[2 + 2], sense[2 + 12], sense[2 + 13]) == (0x0B, 0x0C, 0x0C)

    def test_13_14_immediate_data_above_the_first_burst(self) -> None:
        peer = logged_in(None, ("FirstBurstLength", "512"))
        cdb = write_10(0, 2).ljust(16, b"\0")
        pdu = ScsiCommand(0x01, WRITE_FLAGS, 0, 0, 1, 1024, cdb=cdb)
        ((response, sense),) = peer.request(pdu, bytes(1024))
        assert response.status == 2
        assert (sense[2 + 2], sense[2 + 12], sense[2 + 13]) == (0x0B, 0x0C, 0x0D)


def test_11_10_text_and_numbering_by_many_requests() -> None:
    peer = logged_in()
    for itt in range(1, 300):
        data = encode_pairs([("SendTargets", "")])
        ((response, _),) = peer.request(TextRequest(itt=itt), data)
        assert response.exp_cmd_sn == peer.cmd_sn


@pytest.mark.parametrize(
    "pdu",
    [
        NopOut(PING, itt=1),
        ScsiCommand(0x41, 0x81, itt=1),
        TaskManagementRequest(0x42, 0x81, itt=1),
        DataOut(flags=0x80, itt=1),
        LogoutRequest(0x46, 0x81, itt=1),
    ],
)
def test_4_3_a_discovery_session_is_for_discovery_alone(pdu: object) -> None:
    peer = RawPeer()
    peer.login(DISCOVERY_NAMES)
    ((answer, _),) = peer.send(pdu)  # type: ignore[arg-type]
    assert isinstance(answer, Reject)
