"""The initiator's engine against the target's, in memory, whole and byte by byte."""

from dataclasses import replace

import pytest

from pyiscsi_target.iscsi.chap import Credentials
from pyiscsi_target.iscsi.constants import LoginStatus, LogoutReason, TaskManagement
from pyiscsi_target.iscsi.initiator_events import (
    AsyncMessageReceived,
    CommandFinished,
    InitiatorEvent,
    LoginFailed,
    LoginFinished,
    LogoutFinished,
    PingReturned,
    TargetFailed,
    TaskManagementFinished,
    TextFinished,
)
from pyiscsi_target.iscsi.initiator_login import InitiatorSettings
from pyiscsi_target.iscsi.keys import Limits
from pyiscsi_target.iscsi.pdu import (
    DataIn,
    NopIn,
    ReadyToTransfer,
    Reject,
    ScsiResponse,
    TaskManagementRequest,
)
from tests.support.memory import (
    BLOCK_LENGTH,
    CHECK_CONDITION,
    INITIATOR_NAME,
    ISID,
    TARGET_NAME,
    TEST_UNIT_READY,
    Pair,
    Policy,
    Target,
    frame,
    read_10,
    write_10,
)

SECRET = b"a secret of some length"
OTHER_SECRET = b"another such secret"
ONE_WAY = Credentials("host", SECRET)
MUTUAL = Credentials("host", SECRET, "disk", OTHER_SECRET)
PATTERN = bytes(range(256)) * (BLOCK_LENGTH // 256)

CHUNKS = pytest.mark.parametrize("chunk_length", [0, 1, 7])


def settings(**fields: object) -> InitiatorSettings:
    known = {"initiator_name": INITIATOR_NAME, "target_name": TARGET_NAME, "isid": ISID}
    return InitiatorSettings(**{**known, **fields})  # type: ignore[arg-type]


def logged_in(pair: Pair) -> Pair:
    (event,) = pair.log_in()
    assert isinstance(event, LoginFinished), event
    return pair


def finished(pair: Pair) -> CommandFinished:
    (event,) = pair.run()
    assert isinstance(event, CommandFinished), event
    return event


class TestLogin:
    @CHUNKS
    @pytest.mark.parametrize("security_stage", [True, False])
    def test_both_ends_agree(self, chunk_length: int, security_stage: bool) -> None:
        pair = Pair(settings(security_stage=security_stage), chunk_length=chunk_length)
        (event,) = pair.log_in()
        assert isinstance(event, LoginFinished)
        agreement = pair.target.connection.agreement
        assert agreement is not None
        ours, theirs = event.parameters, agreement.parameters
        assert ours.max_burst_length == theirs.max_burst_length
        assert ours.first_burst_length == theirs.first_burst_length
        assert ours.initial_r2t is theirs.initial_r2t
        assert ours.header_digest is theirs.header_digest is True
        assert ours.max_send_data_segment_length == theirs.max_recv_data_segment_length
        assert event.declared["TargetPortalGroupTag"] == "1"

    @pytest.mark.parametrize("algorithm", ["5", "6", "7", "8"])
    @pytest.mark.parametrize("mutual", [False, True])
    def test_chap(self, algorithm: str, mutual: bool) -> None:
        policy = Policy(credentials=MUTUAL)
        wanted = Credentials("host", SECRET, algorithms=(algorithm,))
        if mutual:
            wanted = Credentials("host", SECRET, "disk", OTHER_SECRET, (algorithm,))
        pair = Pair(settings(credentials=wanted), Target(policy))
        logged_in(pair)

    @pytest.mark.parametrize(
        "wrong", [Credentials("host", OTHER_SECRET), Credentials("nobody", SECRET)]
    )
    def test_wrong_credentials_are_refused(self, wrong: Credentials) -> None:
        pair = Pair(settings(credentials=wrong), Target(Policy(credentials=ONE_WAY)))
        assert pair.log_in() == [LoginFailed(LoginStatus.AUTHENTICATION_FAILURE, None)]
        assert pair.initiator.closed

    def test_a_target_that_cannot_prove_itself_is_left(self) -> None:
        impostor = Credentials("host", SECRET, "disk", b"not the mutual secret")
        pair = Pair(settings(credentials=MUTUAL), Target(Policy(credentials=impostor)))
        (event,) = pair.log_in()
        assert isinstance(event, TargetFailed)
        assert "did not prove" in str(event.error)

    def test_a_required_digest_that_is_refused_ends_the_login(self) -> None:
        target = Target(Policy(Limits(header_digest="None")))
        pair = Pair(settings(limits=Limits(header_digest="CRC32C")), target)
        (event,) = pair.log_in()
        assert isinstance(event, TargetFailed)

    def test_many_keys_are_sent_over_several_requests(self) -> None:
        many = tuple((f"X-example.lab.{n}", "v" * 200) for n in range(100))
        pair = Pair(settings(further_keys=many))
        logged_in(pair)


class TestCommands:
    @CHUNKS
    @pytest.mark.parametrize("immediate_data", [True, False])
    @pytest.mark.parametrize("initial_r2t", [True, False])
    @pytest.mark.parametrize("digest", ["CRC32C", "None"])
    def test_data_goes_out_and_comes_back(
        self, chunk_length: int, immediate_data: bool, initial_r2t: bool, digest: str
    ) -> None:
        limits = Limits(
            header_digest=digest,
            data_digest=digest,
            initial_r2t=initial_r2t,
            immediate_data=immediate_data,
            max_recv_data_segment_length=512,
            max_burst_length=2048,
            first_burst_length=1024,
            max_outstanding_r2t=2,
        )
        pair = logged_in(Pair(settings(limits=limits), Target(Policy(limits)), chunk_length))
        content = PATTERN * 11
        pair.initiator.command(0, write_10(5, 11), data_out=content)
        assert finished(pair).status == 0
        assert pair.target.disk.content[5 * BLOCK_LENGTH : 16 * BLOCK_LENGTH] == content
        pair.initiator.command(0, read_10(5, 11), read_length=len(content))
        event = finished(pair)
        assert (event.status, bytes(event.data), event.residual_bytes) == (0, content, 0)

    def test_sense_data_arrives(self) -> None:
        pair = logged_in(Pair(settings()))
        pair.initiator.command(0, b"\xff" + bytes(5))
        event = finished(pair)
        assert event.status == CHECK_CONDITION
        assert event.sense[2] == 5

    @pytest.mark.parametrize(("expected", "residual"), [(4096, -2048), (512, 1536), (2048, 0)])
    def test_residuals_of_reads(self, expected: int, residual: int) -> None:
        pair = logged_in(Pair(settings()))
        pair.initiator.command(0, read_10(0, 4), read_length=expected)
        event = finished(pair)
        assert event.residual_bytes == residual
        assert len(event.data) == min(expected, 2048)

    def test_a_closed_window_holds_commands_back(self) -> None:
        target = Target(Policy(queue_depth=2))
        target.held = True
        pair = logged_in(Pair(settings(), target))
        tags = [pair.initiator.command(0, TEST_UNIT_READY) for _ in range(5)]
        assert pair.run() == []
        assert [command.itt for command in target.commands] == tags[:2]
        target.held = False
        ended = pair.initiator.receive(target.answer(target.commands[0]))
        ended += pair.run()
        ended += pair.initiator.receive(target.answer(target.commands[0]))
        ended += pair.run()
        assert sorted(event.itt for event in ended if isinstance(event, CommandFinished)) == tags

    def test_an_extended_cdb_travels_in_an_ahs(self) -> None:
        target = Target()
        target.held = True
        pair = logged_in(Pair(settings(), target))
        cdb = bytes([0x7F, *range(1, 31)])
        pair.initiator.command(0, cdb)
        pair.run()
        assert target.commands[0].cdb == cdb


class TestTheRest:
    @CHUNKS
    def test_ping(self, chunk_length: int) -> None:
        pair = logged_in(Pair(settings(), chunk_length=chunk_length))
        for immediate in (True, False):
            itt = pair.initiator.nop_out(b"hello", immediate=immediate)
            assert pair.run() == [PingReturned(itt, b"hello")]

    def test_the_targets_ping_is_answered(self) -> None:
        pair = logged_in(Pair(settings()))
        assert pair.target.connection.ping()
        assert pair.run() == []
        assert pair.target.connection.ping(), "the first one was answered"

    @CHUNKS
    def test_discovery_over_several_responses(self, chunk_length: int) -> None:
        targets = {f"iqn.2026-11.lab.example:{n:04}": [f"10.0.0.{n}:3260,1"] for n in range(40)}
        limits = Limits(max_recv_data_segment_length=512)
        pair = Pair(
            settings(target_name=None, limits=limits), Target(Policy(targets=targets)), chunk_length
        )
        logged_in(pair)
        itt = pair.initiator.send_targets()
        (event,) = pair.run()
        expected = []
        for name, (address,) in targets.items():
            expected += [("TargetName", name), ("TargetAddress", address)]
        assert event == TextFinished(itt, expected)

    def test_task_management(self) -> None:
        target = Target()
        target.held = True
        pair = logged_in(Pair(settings(), target))
        tag = pair.initiator.command(0, TEST_UNIT_READY)
        pair.run()
        itt = pair.initiator.task_management(TaskManagement.ABORT_TASK, 0, tag, ref_cmd_sn=1)
        assert pair.run() == [TaskManagementFinished(itt, 0)]
        assert target.commands == []

    @pytest.mark.parametrize("given", [None, 7])
    def test_an_abort_names_its_task_by_cmd_sn_too(self, given: int | None) -> None:
        pair = logged_in(Pair(settings(limits=Limits("None", "None"))))
        pair.initiator.command(0, TEST_UNIT_READY)
        tag = pair.initiator.command(0, TEST_UNIT_READY)
        pair.initiator.take_outgoing()
        pair.initiator.task_management(TaskManagement.ABORT_TASK, 0, tag, given)
        request = TaskManagementRequest.unpack(b"".join(pair.initiator.take_outgoing()))
        assert request.ref_cmd_sn == given or (given is None and request.ref_cmd_sn == 2)

    def test_a_forgotten_command_is_not_sent_when_the_window_opens(self) -> None:
        target = Target(Policy(queue_depth=1))
        target.held = True
        pair = logged_in(Pair(settings(), target))
        tags = [pair.initiator.command(0, TEST_UNIT_READY) for _ in range(3)]
        pair.run()
        pair.initiator.forget(tags[1])
        target.held = False
        ended = pair.initiator.receive(target.answer(target.commands[0])) + pair.run()
        assert [e.itt for e in ended if isinstance(e, CommandFinished)] == [tags[0], tags[2]]
        assert not pair.initiator.commands

    def test_thousands_of_targets_can_be_discovered(self) -> None:
        targets = {f"iqn.2026-11.lab.example:{n:04}": [f"10.0.0.1:3260,{n}"] for n in range(2000)}
        pair = logged_in(Pair(settings(target_name=None), Target(Policy(targets=targets))))
        pair.initiator.send_targets()
        (event,) = pair.run()
        assert isinstance(event, TextFinished)
        assert len(event.pairs) == 4000

    def test_logout(self) -> None:
        pair = logged_in(Pair(settings()))
        itt = pair.initiator.logout(LogoutReason.CLOSE_SESSION)
        (event,) = pair.run()
        assert isinstance(event, LogoutFinished)
        assert (event.itt, event.response) == (itt, 0)
        assert pair.initiator.closed

    def test_a_request_to_log_out_is_told(self) -> None:
        pair = logged_in(Pair(settings()))
        pair.target.connection.request_logout(5)
        assert pair.run() == [AsyncMessageReceived(1, 0, (0, 0, 5), b"")]


class TestAnAnswerToWhatIsForgotten:
    """Of an aborted command: a target must not send one, and some do."""

    def late(self, pair: Pair, pdu: DataIn | ReadyToTransfer | ScsiResponse) -> InitiatorEvent:
        """The event of a ping after the late answer, or of the answer."""
        engine = pair.initiator
        pdu.itt = engine.command(0, read_10(0, 1), read_length=512)
        engine.forget(pdu.itt)
        pdu.stat_sn = engine.writer.exp_stat_sn
        pdu.exp_cmd_sn, pdu.max_cmd_sn = engine.writer.exp_cmd_sn, engine.writer.max_cmd_sn
        counts = isinstance(pdu, ScsiResponse) or bool(pdu.flags & 1)
        ping = engine.nop_out()
        following = NopIn(itt=ping, stat_sn=pdu.stat_sn + counts)
        return engine.receive(frame(pdu, b"") + frame(following))[0]

    @pytest.mark.parametrize(
        "pdu",
        [
            ScsiResponse(),
            DataIn(flags=0x80),
            DataIn(flags=0x81),
            ReadyToTransfer(flags=0x80, desired_length=512, ttt=1),
        ],
    )
    @pytest.mark.parametrize("strict", [True, False])
    def test_is_passed_over_unless_strict(
        self, pdu: DataIn | ReadyToTransfer | ScsiResponse, strict: bool
    ) -> None:
        pair = logged_in(Pair(settings(limits=Limits("None", "None"), strict=strict)))
        event = self.late(pair, replace(pdu))
        assert isinstance(event, TargetFailed if strict else PingReturned)


class TestABrokenTarget:
    def test_stat_sn_out_of_sequence(self) -> None:
        pair = logged_in(Pair(settings(limits=Limits("None", "None"))))
        itt = pair.initiator.command(0, TEST_UNIT_READY)
        stat_sn = pair.initiator.writer.exp_stat_sn + 1
        (event,) = pair.initiator.receive(frame(ScsiResponse(itt=itt, stat_sn=stat_sn)))
        assert isinstance(event, TargetFailed)
        assert "StatSN" in str(event.error)

    def test_a_reject_without_a_header(self) -> None:
        pair = logged_in(Pair(settings(limits=Limits("None", "None"))))
        stat_sn = pair.initiator.writer.exp_stat_sn
        (event,) = pair.initiator.receive(frame(Reject(stat_sn=stat_sn), bytes(47)))
        assert isinstance(event, TargetFailed)
        assert "Reject" in str(event.error)

    def test_sense_data_that_is_too_short_for_its_length_is_none(self) -> None:
        pair = logged_in(Pair(settings(limits=Limits("None", "None"))))
        itt = pair.initiator.command(0, TEST_UNIT_READY)
        response = ScsiResponse(itt=itt, status=2, stat_sn=pair.initiator.writer.exp_stat_sn)
        (event,) = pair.initiator.receive(frame(response, b"\0"))
        assert isinstance(event, CommandFinished)
        assert (event.status, event.sense) == (2, b"")

    def test_an_answer_that_nothing_asked_for(self) -> None:
        pair = logged_in(Pair(settings(limits=Limits("None", "None"))))
        stat_sn = pair.initiator.writer.exp_stat_sn
        (event,) = pair.initiator.receive(frame(ScsiResponse(itt=77, stat_sn=stat_sn)))
        assert isinstance(event, TargetFailed)
