"""RFC 7143 section 6 (login and negotiation) and the login PDUs of sections 11.12 and 11.13."""

from typing import Any

import pytest

from pyiscsi_target.iscsi.chap import Credentials
from pyiscsi_target.iscsi.constants import CONTINUE, TRANSIT, LoginStatus, Opcode
from pyiscsi_target.iscsi.events import LoginFailed
from pyiscsi_target.iscsi.keys import Limits
from pyiscsi_target.iscsi.login import LoginError
from pyiscsi_target.iscsi.pdu import (
    BY_OPCODE,
    LoginRequest,
    LoginResponse,
    NopOut,
    ScsiCommand,
    stage_flags,
)
from pyiscsi_target.iscsi.text import Pairs, decode_pairs, encode_pairs
from tests.support.memory import (
    DISCOVERY_NAMES,
    INITIATOR_NAME,
    ISID,
    TARGET_NAME,
    TSIH,
    Policy,
    RawPeer,
    Target,
    names,
)

SECURITY_ONLY = stage_flags(0, 0)  # type: ignore[arg-type]
OPERATIONAL_ONLY = stage_flags(1, 0)  # type: ignore[arg-type]
SECURE = Policy(credentials=Credentials("host", b"a secret of some length"))


def transit(current: int, following: int) -> int:
    return TRANSIT | stage_flags(current, following)  # type: ignore[arg-type]


def keys_of(answer: tuple[Any, bytes]) -> dict[str, str]:
    return dict(decode_pairs(answer[1]))


def refused(peer: RawPeer, pairs: Pairs, flags: int = transit(1, 3), **fields: Any) -> int:
    """The status of a login that must end here, connection included."""
    response, data = peer.login(pairs, flags, **fields)
    assert data == b""
    assert not response.flags & TRANSIT
    assert peer.closed
    return int(response.status)


class TestLoginPhaseStart:
    @pytest.mark.parametrize(
        "pdu", [cls() for opcode, cls in BY_OPCODE.items() if opcode != Opcode.LOGIN_REQUEST]
    )
    def test_6_3_anything_before_login_ends_the_connection_unanswered(self, pdu: Any) -> None:
        peer = RawPeer()
        assert peer.send(pdu) == []
        assert peer.closed

    def test_6_3_another_pdu_during_login_is_refused(self) -> None:
        peer = RawPeer()
        peer.login(names(), OPERATIONAL_ONLY)
        ((response, _),) = peer.send(NopOut(itt=5))
        assert isinstance(response, LoginResponse)
        assert response.status == LoginStatus.INVALID_DURING_LOGIN
        assert peer.closed

    def test_6_3_the_refusal_answers_the_login_not_the_stray_pdu(self) -> None:
        peer = RawPeer()
        peer.login(names(), OPERATIONAL_ONLY, itt=3)
        ((response, _),) = peer.send(ScsiCommand(itt=9, lun=0x0102030405060708))
        assert (response.isid, response.itt, response.tsih) == (ISID, 3, 0)

    @pytest.mark.parametrize("missing", ["InitiatorName", "TargetName"])
    def test_6_3_1_the_first_request_names_both_ends(self, missing: str) -> None:
        pairs = [pair for pair in names() if pair[0] != missing]
        assert refused(RawPeer(), pairs) == LoginStatus.MISSING_PARAMETER

    def test_6_3_1_a_session_is_normal_unless_it_says_otherwise(self) -> None:
        target = Target()
        peer = RawPeer(target)
        peer.login([pair for pair in names() if pair[0] != "SessionType"])
        assert target.connection.agreement is not None
        assert not target.connection.agreement.discovery

    def test_13_21_unknown_session_type(self) -> None:
        pairs = [("InitiatorName", INITIATOR_NAME), ("SessionType", "Sideways")]
        assert refused(RawPeer(), pairs) == LoginStatus.SESSION_TYPE_NOT_SUPPORTED

    def test_11_13_5_unknown_target(self) -> None:
        pairs = names(target_name="iqn.2026-11.lab.example:nothing")
        assert refused(RawPeer(), pairs) == LoginStatus.NOT_FOUND

    @pytest.mark.parametrize(
        "status", [LoginStatus.AUTHORIZATION_FAILURE, LoginStatus.SERVICE_UNAVAILABLE]
    )
    def test_11_13_5_the_policys_status_is_sent(self, status: LoginStatus) -> None:
        peer = RawPeer(Target(Policy(refusals={INITIATOR_NAME: status})))
        assert refused(peer, names()) == status


class TestStages:
    @pytest.mark.parametrize(
        ("current", "following"), [(0, 0), (1, 0), (1, 1), (0, 2), (1, 2), (2, 3), (3, 3), (2, 1)]
    )
    def test_11_12_3_illegal_transitions(self, current: int, following: int) -> None:
        assert refused(RawPeer(), names(), transit(current, following)) == 0x0200

    @pytest.mark.parametrize("path", [[(0, 1), (1, 3)], [(0, 3)], [(1, 3)]])
    def test_11_12_3_legal_paths(self, path: list[tuple[int, int]]) -> None:
        peer = RawPeer()
        pairs = names()
        for current, following in path:
            response, _ = peer.login(pairs, transit(current, following))
            assert response.flags == transit(current, following)
            assert response.status == 0
            pairs = []
        assert peer.target.connection.agreement is not None

    def test_6_3_a_stage_cannot_be_left_backwards(self) -> None:
        peer = RawPeer()
        peer.login(names(), transit(0, 1))
        assert refused(peer, [], transit(0, 3)) == LoginStatus.INITIATOR_ERROR

    def test_11_13_6_no_transit_that_was_not_asked_for(self) -> None:
        peer = RawPeer()
        for pairs in (names(), []):
            response, _ = peer.login(pairs, SECURITY_ONLY)
            assert response.flags == SECURITY_ONLY

    def test_6_3_2_the_target_stays_until_authentication_is_over(self) -> None:
        peer = RawPeer(Target(SECURE))
        answer = peer.login([*names(), ("AuthMethod", "CHAP")], transit(0, 1))
        assert not answer[0].flags & TRANSIT
        assert keys_of(answer)["AuthMethod"] == "CHAP"

    def test_6_3_security_stage_skipped_where_it_is_required(self) -> None:
        assert refused(RawPeer(Target(SECURE)), names()) == LoginStatus.AUTHENTICATION_FAILURE

    def test_6_3_security_stage_left_without_authentication(self) -> None:
        peer = RawPeer(Target(SECURE))
        status = refused(peer, names(), transit(0, 3))
        assert status == LoginStatus.AUTHENTICATION_FAILURE

    def test_6_3_3_operational_keys_are_not_settled_in_the_security_stage(self) -> None:
        peer = RawPeer(Target(SECURE))
        answer = peer.login([*names(), ("HeaderDigest", "CRC32C")], SECURITY_ONLY)
        assert keys_of(answer).get("HeaderDigest") in (None, "Reject")

    def test_7_12_a_login_that_never_ends_is_ended(self) -> None:
        peer = RawPeer()
        peer.login(names(), OPERATIONAL_ONLY)
        for _ in range(200):
            if peer.closed:
                break
            peer.login([], OPERATIONAL_ONLY)
        assert peer.closed
        assert isinstance(peer.target.events[-1], LoginFailed)


class TestLoginHeader:
    @pytest.mark.parametrize("version_min", [1, 255])
    def test_11_12_4_no_common_version(self, version_min: int) -> None:
        peer = RawPeer()
        response, _ = peer.login(names(), version_max=255, version_min=version_min)
        assert response.status == LoginStatus.UNSUPPORTED_VERSION
        assert (response.version_max, response.version_active) == (0, 0)
        assert peer.closed

    def test_11_13_2_the_common_version_is_active(self) -> None:
        response, _ = RawPeer().login(names(), version_max=3)
        assert (response.status, response.version_max, response.version_active) == (0, 0, 0)

    def test_11_13_3_a_new_tsih_comes_with_the_last_response_only(self) -> None:
        peer = RawPeer()
        assert peer.login(names(), transit(0, 1))[0].tsih == 0
        assert peer.login([], transit(1, 3))[0].tsih == TSIH != 0

    def test_11_13_isid_and_task_tag_are_copied(self) -> None:
        response, _ = RawPeer().login(names(), itt=0x11223344)
        assert (response.isid, response.itt) == (ISID, 0x11223344)

    @pytest.mark.parametrize("change", [{"isid": bytes(6)}, {"tsih": 7}, {"cid": 9}])
    def test_6_3_the_identity_of_a_login_does_not_change(self, change: dict[str, Any]) -> None:
        peer = RawPeer()
        peer.login(names(), transit(0, 1))
        assert refused(peer, [], transit(1, 3), **change) == LoginStatus.INITIATOR_ERROR

    def test_11_12_8_numbering_begins_where_the_initiator_says(self) -> None:
        peer = RawPeer()
        peer.cmd_sn = 0xFFFFFFFF
        response = peer.log_in()
        assert response.exp_cmd_sn == 0xFFFFFFFF
        assert response.max_cmd_sn == (0xFFFFFFFF + 127) & 0xFFFFFFFF

    def test_11_13_4_stat_sn_counts_every_response(self) -> None:
        peer = RawPeer()
        first, _ = peer.login(names(), transit(0, 1))
        second, _ = peer.login([], transit(1, 3))
        peer.itt = 1
        ((ping, _),) = peer.request(NopOut(Opcode.NOP_OUT | 0x40, itt=1))
        assert second.stat_sn == (first.stat_sn + 1) & 0xFFFFFFFF
        assert ping.stat_sn == (first.stat_sn + 2) & 0xFFFFFFFF

    def test_11_13_5_a_refused_session_ends_the_connection(self) -> None:
        target = Target()
        target.session_error = LoginError(LoginStatus.SESSION_DOES_NOT_EXIST, "no such TSIH")
        assert refused(RawPeer(target), names(), tsih=99) == LoginStatus.SESSION_DOES_NOT_EXIST


class TestTextOverManyPdus:
    def test_11_12_2_a_request_in_parts_gets_empty_answers(self) -> None:
        peer = RawPeer()
        text = encode_pairs([*names(), ("HeaderDigest", "None")])
        parts = [text[:30], text[30:31], text[31:]]
        for part in parts[:-1]:
            ((response, data),) = peer.send(
                LoginRequest(flags=CONTINUE | OPERATIONAL_ONLY, isid=ISID, cmd_sn=1), part
            )
            assert (data, response.status, response.flags) == (b"", 0, OPERATIONAL_ONLY)
        ((response, data),) = peer.send(
            LoginRequest(flags=transit(1, 3), isid=ISID, cmd_sn=1), parts[-1]
        )
        assert response.flags == transit(1, 3)
        assert keys_of((response, data))["HeaderDigest"] == "None"

    def test_11_12_1_t_and_c_exclude_each_other(self) -> None:
        assert refused(RawPeer(), names(), transit(1, 3) | CONTINUE) == 0x0200

    def test_11_13_7_a_long_answer_comes_in_parts(self) -> None:
        peer = RawPeer()
        offers = [(f"X-example.lab.continued.{n}", "1") for n in range(240)]
        text = encode_pairs([*names(), *offers[:120]]), encode_pairs(offers[120:])
        answer = peer.send(
            LoginRequest(flags=CONTINUE | OPERATIONAL_ONLY, isid=ISID, cmd_sn=1), text[0]
        )[0]
        assert answer[1] == b""
        answer = peer.send(LoginRequest(flags=transit(1, 3), isid=ISID, cmd_sn=1), text[1])[0]
        collected = answer[1]
        while answer[0].flags & CONTINUE:
            assert not answer[0].flags & TRANSIT
            assert len(answer[1]) <= 8192
            answer = peer.login([], transit(1, 3))
            collected += answer[1]
        assert answer[0].flags == transit(1, 3)
        assert sum(value == "NotUnderstood" for _, value in decode_pairs(collected)) == 240

    def test_11_13_6_the_last_part_has_t_only_if_its_request_has(self) -> None:
        peer = RawPeer()
        offers = [(f"X-example.lab.continued.{n}", "1") for n in range(240)]
        text = encode_pairs([*names(), *offers[:120]]), encode_pairs(offers[120:])
        peer.send(LoginRequest(flags=CONTINUE | OPERATIONAL_ONLY, isid=ISID, cmd_sn=1), text[0])
        answer = peer.send(LoginRequest(flags=transit(1, 3), isid=ISID, cmd_sn=1), text[1])[0]
        while answer[0].flags & CONTINUE:
            answer = peer.login([], OPERATIONAL_ONLY)
        assert answer[0].flags == OPERATIONAL_ONLY
        assert peer.login([], transit(1, 3))[0].flags == transit(1, 3)

    def test_6_1_a_pair_is_not_cut_short(self) -> None:
        assert refused(RawPeer(), [*names(), ("-NotAKey", "1")]) == LoginStatus.INITIATOR_ERROR


class TestNegotiation:
    def test_6_2_unknown_keys_are_answered_not_understood(self) -> None:
        keys = keys_of(RawPeer().login([*names(), ("X-com.example.knob", "7")]))
        assert keys["X-com.example.knob"] == "NotUnderstood"

    def test_6_2_a_key_is_negotiated_once(self) -> None:
        pairs = [*names(), ("MaxBurstLength", "65536"), ("MaxBurstLength", "65536")]
        assert refused(RawPeer(), pairs) == LoginStatus.INITIATOR_ERROR

    def test_6_2_a_key_is_negotiated_once_in_all_of_login(self) -> None:
        peer = RawPeer()
        peer.login([*names(), ("MaxBurstLength", "65536")], OPERATIONAL_ONLY)
        status = refused(peer, [("MaxBurstLength", "65536")])
        assert status == LoginStatus.INITIATOR_ERROR

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("MaxBurstLength", "511"),
            ("MaxBurstLength", "16777216"),
            ("FirstBurstLength", "many"),
            ("MaxConnections", "0"),
            ("MaxOutstandingR2T", "-1"),
            ("DefaultTime2Wait", "3601"),
            ("ErrorRecoveryLevel", "3"),
            ("InitialR2T", "yes"),
            ("ImmediateData", "1"),
            ("HeaderDigest", "CRC64"),
        ],
    )
    def test_6_2_what_is_not_admissible_is_rejected(self, key: str, value: str) -> None:
        assert keys_of(RawPeer().login([*names(), (key, value)]))[key] == "Reject"

    def test_6_2_1_the_first_supported_value_of_a_list_wins(self) -> None:
        pairs = [*names(), ("HeaderDigest", "X#y,None,CRC32C"), ("DataDigest", "CRC32C,None")]
        keys = keys_of(RawPeer().login(pairs))
        assert (keys["HeaderDigest"], keys["DataDigest"]) == ("None", "CRC32C")

    def test_6_2_declarations_are_not_answered(self) -> None:
        declared = [("InitiatorAlias", "me"), ("MaxRecvDataSegmentLength", "65536")]
        keys = keys_of(RawPeer().login([*names(), *declared]))
        assert "InitiatorAlias" not in keys
        assert keys["MaxRecvDataSegmentLength"] == str(Limits().max_recv_data_segment_length)

    def test_6_2_2_hexadecimal_numbers(self) -> None:
        keys = keys_of(RawPeer().login([*names(), ("MaxBurstLength", "0x10000")]))
        assert keys["MaxBurstLength"] == "65536"

    def test_6_3_discovery_needs_no_target(self) -> None:
        target = Target()
        response, _ = RawPeer(target).login(DISCOVERY_NAMES)
        assert response.status == 0
        assert target.connection.agreement is not None
        assert target.connection.agreement.discovery

    def test_4_2_7_1_names_compare_without_case(self) -> None:
        target = Target()
        RawPeer(target).login(names(TARGET_NAME.upper(), INITIATOR_NAME.upper()))
        assert target.connection.agreement is not None
        assert target.connection.agreement.initiator_name == INITIATOR_NAME
