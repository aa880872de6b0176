"""RFC 7143 sections 11.5, 11.6, 11.9 to 11.11, 11.14, 11.15, 11.18, 11.19 and appendix C."""

from typing import Any

import pytest

from pyiscsi_target.iscsi.constants import (
    CONTINUE,
    FINAL,
    IMMEDIATE,
    AsyncEvent,
    LogoutReason,
    Opcode,
    RejectReason,
    TaskManagement,
    TaskManagementResponse,
)
from pyiscsi_target.iscsi.events import LogoutRequested, PingAnswered, TaskManagementRequested
from pyiscsi_target.iscsi.pdu import (
    AsyncMessage,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    Reject,
    ScsiCommand,
    TaskManagementRequest,
    TaskManagementResult,
    TextRequest,
    TextResponse,
)
from pyiscsi_target.iscsi.text import decode_pairs, encode_pairs
from tests.support.memory import (
    DISCOVERY_NAMES,
    TARGET_NAME,
    Policy,
    RawPeer,
    Target,
    frame,
)

PING = Opcode.NOP_OUT | IMMEDIATE
LOGOUT = Opcode.LOGOUT_REQUEST | IMMEDIATE
MANAGE = Opcode.TASK_MANAGEMENT_REQUEST | IMMEDIATE
NO_TAG = 0xFFFFFFFF

TARGETS = {
    TARGET_NAME: ["10.0.0.1:3260,1", "[2001:db8::1]:3260,1"],
    "iqn.2026-11.lab.example:other": ["10.0.0.1:3260,1"],
}


def logged_in(target: Target | None = None, *keys: tuple[str, str], cid: int = 0) -> RawPeer:
    peer = RawPeer(target)
    peer.log_in(*keys, cid=cid)
    return peer


def discovering(*keys: tuple[str, str]) -> RawPeer:
    peer = RawPeer(Target(Policy(targets=TARGETS)))
    response, _ = peer.login([*DISCOVERY_NAMES, *keys])
    peer.exp_stat_sn = response.stat_sn + 1
    return peer


class TestTaskManagement:
    def manage(self, peer: RawPeer, function: int, **fields: Any) -> TaskManagementResult:
        pdu = TaskManagementRequest(MANAGE, FINAL | function, itt=99, **fields)
        ((response, data),) = peer.request(pdu)
        assert isinstance(response, TaskManagementResult)
        assert (response.itt, response.flags, data) == (99, FINAL, b"")
        return response

    def holding(self, itt: int = 1) -> RawPeer:
        target = Target()
        peer = logged_in(target)
        target.held = True
        peer.request(ScsiCommand(0x01, 0x81, itt=itt))
        return peer

    def test_11_6_1_abort_task_of_a_task_that_is_there(self) -> None:
        peer = self.holding()
        response = self.manage(peer, TaskManagement.ABORT_TASK, referenced_task_tag=1, ref_cmd_sn=1)
        assert response.response == TaskManagementResponse.FUNCTION_COMPLETE
        assert peer.target.commands == []

    def test_11_6_1_abort_task_of_an_immediate_command(self) -> None:
        peer = logged_in()
        peer.target.held = True
        peer.request(ScsiCommand(0x41, 0x81, itt=1))
        response = self.manage(
            peer, TaskManagement.ABORT_TASK, referenced_task_tag=1, ref_cmd_sn=peer.cmd_sn
        )
        assert response.response == TaskManagementResponse.FUNCTION_COMPLETE
        assert peer.target.commands == []

    def test_11_6_1_abort_task_that_was_lost_plugs_the_gap(self) -> None:
        peer = logged_in()
        peer.cmd_sn = 2  # command 1 never arrives
        response = self.manage(peer, TaskManagement.ABORT_TASK, referenced_task_tag=1, ref_cmd_sn=1)
        assert response.response == TaskManagementResponse.FUNCTION_COMPLETE
        assert response.exp_cmd_sn == 2
        assert peer.send(ScsiCommand(0x01, 0x81, itt=1, cmd_sn=1)) == []
        ((answer, _),) = peer.request(ScsiCommand(0x01, 0x81, itt=2))
        assert answer.itt == 2

    def test_11_6_1_abort_task_that_has_ended(self) -> None:
        peer = logged_in()
        peer.request(ScsiCommand(0x01, 0x81, itt=1))
        response = self.manage(peer, TaskManagement.ABORT_TASK, referenced_task_tag=1, ref_cmd_sn=1)
        assert response.response == TaskManagementResponse.TASK_DOES_NOT_EXIST

    def test_11_5_1_abort_task_of_a_task_management_request(self) -> None:
        peer = logged_in()
        peer.target.manage = lambda request: None  # its answer takes its time
        reset = TaskManagementRequest(MANAGE, FINAL | TaskManagement.LOGICAL_UNIT_RESET, itt=1)
        assert peer.request(reset) == []
        response = self.manage(
            peer, TaskManagement.ABORT_TASK, referenced_task_tag=1, ref_cmd_sn=peer.cmd_sn
        )
        assert response.response == TaskManagementResponse.FUNCTION_REJECTED

    @pytest.mark.parametrize(
        "function",
        [
            TaskManagement.ABORT_TASK_SET,
            TaskManagement.CLEAR_ACA,
            TaskManagement.CLEAR_TASK_SET,
            TaskManagement.LOGICAL_UNIT_RESET,
            TaskManagement.TARGET_WARM_RESET,
            TaskManagement.TARGET_COLD_RESET,
        ],
    )
    def test_11_5_1_the_device_server_is_asked(self, function: TaskManagement) -> None:
        peer = logged_in()
        peer.target.manage = lambda request: TaskManagementResponse.LUN_DOES_NOT_EXIST
        response = self.manage(peer, function, lun=0x0007_0000_0000_0000)
        assert response.response == TaskManagementResponse.LUN_DOES_NOT_EXIST
        event = peer.target.events[-1]
        assert isinstance(event, TaskManagementRequested)
        assert (event.function, event.lun) == (function, 0x0007_0000_0000_0000)

    def test_11_6_1_reassignment_needs_error_recovery_level_2(self) -> None:
        response = self.manage(logged_in(), TaskManagement.TASK_REASSIGN, referenced_task_tag=1)
        assert response.response == TaskManagementResponse.ALLEGIANCE_REASSIGNMENT_NOT_SUPPORTED

    @pytest.mark.parametrize(
        "function",
        [
            TaskManagement.QUERY_TASK,
            TaskManagement.QUERY_TASK_SET,
            TaskManagement.I_T_NEXUS_RESET,
            TaskManagement.QUERY_ASYNCHRONOUS_EVENT,
        ],
    )
    @pytest.mark.parametrize(("level", "supported"), [("1", False), ("2", True)])
    def test_13_24_later_functions_need_their_protocol_level(
        self, function: TaskManagement, level: str, supported: bool
    ) -> None:
        peer = logged_in(None, ("iSCSIProtocolLevel", level))
        peer.target.manage = lambda request: TaskManagementResponse.FUNCTION_SUCCEEDED
        response = self.manage(peer, function)
        succeeded = response.response == TaskManagementResponse.FUNCTION_SUCCEEDED
        assert succeeded is supported
        assert supported or response.response == TaskManagementResponse.NOT_SUPPORTED

    def test_11_5_a_non_immediate_request_waits_for_its_turn(self) -> None:
        peer = self.holding()
        pdu = TaskManagementRequest(0x02, FINAL | TaskManagement.ABORT_TASK_SET, itt=99, cmd_sn=3)
        assert peer.send(pdu) == []
        assert len(peer.target.commands) == 1
        ((response, _),) = peer.send(ScsiCommand(0x01, 0x81, itt=2, cmd_sn=2))
        assert isinstance(response, TaskManagementResult)
        assert peer.target.commands == []


class TestNop:
    @pytest.mark.parametrize("opcode", [Opcode.NOP_OUT, PING])
    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 8])
    def test_11_19_a_ping_is_echoed(self, opcode: int, data: bytes) -> None:
        ((pdu, echo),) = logged_in().request(NopOut(opcode, itt=5), data)
        assert isinstance(pdu, NopIn)
        assert (pdu.itt, pdu.ttt, pdu.flags) == (5, NO_TAG, FINAL)
        assert echo == data

    def test_11_18_3_an_echo_is_cut_to_what_the_initiator_takes(self) -> None:
        peer = logged_in(None, ("MaxRecvDataSegmentLength", "512"))
        ((_, echo),) = peer.request(NopOut(PING, itt=5), b"z" * 600)
        assert echo == b"z" * 512

    def test_11_18_1_no_answer_without_a_tag(self) -> None:
        peer = logged_in()
        assert peer.request(NopOut(PING)) == []
        assert not peer.closed

    def test_11_18_1_without_a_tag_it_must_be_immediate(self) -> None:
        peer = logged_in()
        ((pdu, _),) = peer.request(NopOut(Opcode.NOP_OUT))
        assert isinstance(pdu, Reject)

    def test_11_19_1_a_ping_of_the_target(self) -> None:
        peer = logged_in()
        assert peer.target.connection.ping()
        ((ping, data),) = peer.send_bytes(b"")
        assert (ping.itt, data) == (NO_TAG, b"")
        assert ping.ttt != NO_TAG
        assert not peer.target.connection.ping(), "one at a time"
        assert peer.request(NopOut(PING, ttt=ping.ttt, lun=ping.lun)) == []
        assert isinstance(peer.target.events[-1], PingAnswered)
        assert peer.target.connection.ping()

    def test_11_18_2_an_answer_to_no_ping(self) -> None:
        peer = logged_in()
        peer.target.connection.ping()
        peer.request(NopOut(PING, ttt=0x5555))
        assert not any(isinstance(event, PingAnswered) for event in peer.target.events)


class TestText:
    def ask(self, peer: RawPeer, what: str) -> list[tuple[str, str]]:
        ((pdu, data),) = peer.request(
            TextRequest(itt=1, flags=FINAL), encode_pairs([("SendTargets", what)])
        )
        assert isinstance(pdu, TextResponse)
        assert (pdu.flags, pdu.itt, pdu.ttt) == (FINAL, 1, NO_TAG)
        return decode_pairs(data)

    def test_appendix_c_all_targets(self) -> None:
        expected = []
        for name, addresses in TARGETS.items():
            expected.append(("TargetName", name))
            expected += [("TargetAddress", address) for address in addresses]
        assert self.ask(discovering(), "All") == expected

    def test_appendix_c_one_target(self) -> None:
        name = "iqn.2026-11.lab.example:other"
        expected = [("TargetName", name), ("TargetAddress", "10.0.0.1:3260,1")]
        assert self.ask(discovering(), name) == expected

    def test_appendix_c_an_unknown_target_gets_an_empty_answer(self) -> None:
        assert self.ask(discovering(), "iqn.2026-11.lab.example:none") == []

    @pytest.mark.parametrize("what", ["", TARGET_NAME])
    def test_appendix_c_a_normal_session_asks_for_its_own_target(self, what: str) -> None:
        peer = logged_in(Target(Policy(targets=TARGETS)))
        assert self.ask(peer, what)[0] == ("TargetName", TARGET_NAME)
        assert len(self.ask(peer, what)) == 3

    @pytest.mark.parametrize("what", ["All", "iqn.2026-11.lab.example:other"])
    def test_appendix_c_a_normal_session_learns_of_no_other(self, what: str) -> None:
        peer = logged_in(Target(Policy(targets=TARGETS)))
        assert self.ask(peer, what) == [("SendTargets", "Reject")]

    def test_11_11_a_long_answer_comes_in_parts(self) -> None:
        peer = RawPeer()
        many = {f"iqn.2026-11.lab.example:{n:03}": ["10.0.0.1:3260,1"] for n in range(50)}
        peer.target = Target(Policy(targets=many))
        peer.login([*DISCOVERY_NAMES, ("MaxRecvDataSegmentLength", "512")])
        ((pdu, data),) = peer.request(TextRequest(itt=1), encode_pairs([("SendTargets", "All")]))
        collected = data
        while not pdu.flags & FINAL:
            assert pdu.flags == CONTINUE
            assert pdu.ttt != NO_TAG
            assert len(data) <= 512
            ((pdu, data),) = peer.request(TextRequest(itt=1, ttt=pdu.ttt))
            collected += data
        assert pdu.ttt == NO_TAG
        assert len(decode_pairs(collected)) == 100

    def test_11_10_2_a_request_in_parts_gets_empty_answers(self) -> None:
        peer = discovering()
        text = encode_pairs([("SendTargets", "All")])
        ((pdu, data),) = peer.request(TextRequest(itt=1, flags=CONTINUE), text[:5])
        assert (pdu.flags, data) == (0, b"")
        assert pdu.ttt != NO_TAG
        ((pdu, data),) = peer.request(TextRequest(itt=1, ttt=pdu.ttt), text[5:])
        assert pdu.flags == FINAL
        assert len(decode_pairs(data)) == 5

    def test_11_11_1_f_is_not_answered_before_it_is_asked_for(self) -> None:
        peer = discovering()
        text = encode_pairs([("SendTargets", "All")])
        ((pdu, _),) = peer.request(TextRequest(itt=1, flags=0), text)
        assert pdu.flags == 0
        assert pdu.ttt != NO_TAG
        ((pdu, data),) = peer.request(TextRequest(itt=1, ttt=pdu.ttt))
        assert (pdu.flags, pdu.ttt, data) == (FINAL, NO_TAG, b"")

    def test_11_10_4_a_new_request_resets_the_exchange(self) -> None:
        peer = discovering()
        peer.request(TextRequest(itt=1, flags=CONTINUE), b"SendTargets=nonse")
        ((pdu, data),) = peer.request(TextRequest(itt=2), encode_pairs([("SendTargets", "All")]))
        assert pdu.flags == FINAL
        assert len(decode_pairs(data)) == 5

    def test_11_10_4_an_unknown_transfer_tag(self) -> None:
        ((pdu, _),) = discovering().request(TextRequest(itt=1, ttt=0x777))
        assert isinstance(pdu, Reject)
        assert pdu.reason == RejectReason.INVALID_PDU_FIELD

    def test_6_4_segment_lengths_may_change_in_full_feature_phase(self) -> None:
        peer = logged_in()
        pairs = [("MaxRecvDataSegmentLength", "512")]
        ((pdu, _),) = peer.request(TextRequest(itt=1), encode_pairs(pairs))
        assert pdu.flags == FINAL
        ((_, echo),) = peer.request(NopOut(PING, itt=2), b"z" * 600)
        assert len(echo) == 512

    @pytest.mark.parametrize("key", ["MaxBurstLength=65536", "SessionType=Normal", "CHAP_A=5"])
    def test_6_4_login_keys_are_rejected_in_full_feature_phase(self, key: str) -> None:
        peer = logged_in()
        answers = peer.request(TextRequest(itt=1), key.encode() + b"\0")
        ((pdu, data),) = answers
        rejected = isinstance(pdu, Reject) or decode_pairs(data) == [(key.split("=")[0], "Reject")]
        assert rejected

    def test_6_2_unknown_keys_in_full_feature_phase(self) -> None:
        ((_, data),) = logged_in().request(TextRequest(itt=1), b"X-lab.example=1\0")
        assert decode_pairs(data) == [("X-lab.example", "NotUnderstood")]


class TestLogout:
    def log_out(self, peer: RawPeer, reason: int, cid: int = 0) -> LogoutResponse:
        ((response, data),) = peer.request(LogoutRequest(LOGOUT, FINAL | reason, 0, 9, cid))
        assert isinstance(response, LogoutResponse)
        assert (response.itt, response.flags, data) == (9, FINAL, b"")
        return response

    @pytest.mark.parametrize("reason", [LogoutReason.CLOSE_SESSION, LogoutReason.CLOSE_CONNECTION])
    def test_11_15_1_closed(self, reason: LogoutReason) -> None:
        peer = logged_in(cid=3)
        assert self.log_out(peer, reason, 3).response == 0
        assert peer.closed
        assert peer.target.events[-1] == LogoutRequested(9, reason)

    def test_11_15_1_cid_not_found(self) -> None:
        peer = logged_in(cid=3)
        assert self.log_out(peer, LogoutReason.CLOSE_CONNECTION, 4).response == 1
        assert not peer.closed

    def test_11_15_1_recovery_is_not_supported(self) -> None:
        peer = logged_in()
        assert self.log_out(peer, LogoutReason.REMOVE_CONNECTION_FOR_RECOVERY).response == 2
        assert not peer.closed

    def test_11_14_1_reserved_reasons(self) -> None:
        peer = logged_in()
        ((pdu, _),) = peer.request(LogoutRequest(LOGOUT, FINAL | 3, itt=9))
        assert isinstance(pdu, Reject)

    def test_11_14_a_discovery_session_logs_out(self) -> None:
        peer = discovering()
        assert self.log_out(peer, LogoutReason.CLOSE_SESSION).response == 0
        assert peer.closed

    def test_11_14_nothing_follows_the_logout_response(self) -> None:
        peer = logged_in()
        command = ScsiCommand(0x01, 0x81, itt=1, cmd_sn=1)
        logout = LogoutRequest(LOGOUT, FINAL, itt=2, cmd_sn=2)
        after = ScsiCommand(0x01, 0x81, itt=3, cmd_sn=2)
        answers = peer.send_bytes(frame(command) + frame(logout) + frame(after))
        assert isinstance(answers[-1][0], LogoutResponse)
        assert all(pdu.itt in (1, 2) for pdu, _ in answers)

    def test_11_14_a_numbered_logout_waits_for_its_turn(self) -> None:
        peer = logged_in()
        assert peer.send(LogoutRequest(0x06, FINAL, itt=9, cmd_sn=2)) == []
        answers = peer.send(ScsiCommand(0x01, 0x81, itt=1, cmd_sn=1))
        assert isinstance(answers[-1][0], LogoutResponse)


class TestAsyncMessages:
    def message(self, peer: RawPeer) -> AsyncMessage:
        ((pdu, data),) = peer.send_bytes(b"")
        assert isinstance(pdu, AsyncMessage)
        assert (pdu.itt, pdu.flags, data) == (NO_TAG, FINAL, b"")
        assert pdu.stat_sn == peer.exp_stat_sn
        return pdu

    def test_11_9_1_a_request_to_log_out(self) -> None:
        peer = logged_in()
        peer.target.connection.request_logout(30)
        pdu = self.message(peer)
        assert pdu.event == AsyncEvent.LOGOUT_REQUESTED
        assert (pdu.parameter1, pdu.parameter2, pdu.parameter3) == (0, 0, 30)

    def test_11_9_1_a_connection_that_will_be_dropped(self) -> None:
        peer = logged_in(cid=6)
        peer.target.connection.announce_drop()
        pdu = self.message(peer)
        assert pdu.event == AsyncEvent.CONNECTION_DROPPED
        assert (pdu.parameter1, pdu.parameter2, pdu.parameter3) == (6, 2, 0)

    def test_11_9_an_async_message_takes_a_stat_sn(self) -> None:
        peer = logged_in()
        peer.target.connection.request_logout(30)
        self.message(peer)
        ((pong, _),) = peer.request(NopOut(PING, itt=1))
        assert pong.stat_sn == peer.exp_stat_sn + 1
