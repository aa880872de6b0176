"""The target's login: stages, the C bit both ways, who may come in, and each refusal's status."""

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.iscsi.chap import Credentials, chap_response
from pyiscsi_target.iscsi.constants import CONTINUE, TRANSIT, LoginStatus, Stage
from pyiscsi_target.iscsi.keys import Limits
from pyiscsi_target.iscsi.login import LOGIN_SEGMENT_LENGTH, NAME_LENGTH, Reply, TargetLogin
from pyiscsi_target.iscsi.pdu import LoginRequest
from pyiscsi_target.iscsi.text import (
    TEXT_TOTAL_LENGTH,
    Pairs,
    ProtocolError,
    decode_pairs,
    encode_pairs,
    format_binary,
    parse_binary,
)
from tests.support.memory import (
    DISCOVERY_NAMES,
    INITIATOR_NAME,
    ISID,
    TARGET_NAME,
    Policy,
    Randomness,
    names,
)

SECRET = b"a secret of some length"
CREDENTIALS = Credentials("host", SECRET, "disk", b"another secret")
SECURITY, OPERATIONAL, FULL_FEATURE = Stage.SECURITY, Stage.OPERATIONAL, Stage.FULL_FEATURE
RESERVED_STAGE = 2


def stay(stage: int) -> int:
    return stage << 2


def move(current: int, following: int) -> int:
    return TRANSIT | current << 2 | following


TO_OPERATIONAL = move(SECURITY, OPERATIONAL)
TO_FULL_FEATURE = move(OPERATIONAL, FULL_FEATURE)
AT_ONCE = move(SECURITY, FULL_FEATURE)
UNKNOWN: Pairs = [(f"X-key-{number}", "v") for number in range(60)]
SMALL = ("MaxRecvDataSegmentLength", "512")
LEGAL_MOVES = {(SECURITY, OPERATIONAL), (SECURITY, FULL_FEATURE), (OPERATIONAL, FULL_FEATURE)}


class Subject:
    """A login under test; requests are alike but for their flags and keys."""

    def __init__(self, **policy: Any) -> None:
        self.login = TargetLogin(Policy(**policy), Randomness())

    def send(self, flags: int, pairs: Pairs | bytes = b"", **header: Any) -> Reply:
        text = pairs if isinstance(pairs, bytes) else encode_pairs(pairs)
        request = LoginRequest(**{"flags": flags, "isid": ISID, "itt": 1, "cid": 1, **header})
        return self.login.receive(request, text)

    def refused(self, flags: int, pairs: Pairs | bytes = b"", **header: Any) -> LoginStatus:
        with pytest.raises(ProtocolError) as caught:
            self.send(flags, pairs, **header)
        assert self.login.agreement is None
        return caught.value.status

    def chap(self, **changes: str) -> Reply:
        """Both CHAP steps after AuthMethod, the second asking for the move to full feature."""
        asked = dict(decode_pairs(self.send(stay(SECURITY), [("CHAP_A", "7")]).data))
        challenge = parse_binary(asked["CHAP_C"])
        proof = chap_response("7", int(asked["CHAP_I"]), SECRET, challenge)
        keys = {"CHAP_N": "host", "CHAP_R": format_binary(proof), **changes}
        return self.send(AT_ONCE, [*keys.items()])


def keys_of(reply: Reply) -> dict[str, str]:
    return dict(decode_pairs(reply.data))


class TestStages:
    @pytest.mark.parametrize(
        "path",
        [
            [AT_ONCE],
            [TO_FULL_FEATURE],
            [TO_OPERATIONAL, TO_FULL_FEATURE],
            [stay(SECURITY), AT_ONCE],
            [stay(OPERATIONAL), stay(OPERATIONAL), TO_FULL_FEATURE],
            [stay(SECURITY), TO_OPERATIONAL, stay(OPERATIONAL), TO_FULL_FEATURE],
        ],
    )
    def test_every_road_to_full_feature(self, path: list[int]) -> None:
        subject = Subject()
        pairs = names()
        for flags in path:
            reply = subject.send(flags, pairs)
            assert reply.flags == flags
            pairs = []
        assert reply.agreed
        assert subject.login.stage is FULL_FEATURE

    @pytest.mark.parametrize(
        ("current", "following"),
        [
            (current, following)
            for current in range(4)
            for following in range(4)
            if (current, following) not in LEGAL_MOVES
        ],
    )
    def test_every_other_move(self, current: int, following: int) -> None:
        status = Subject().refused(move(current, following), names())
        assert status == LoginStatus.INITIATOR_ERROR

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (stay(SECURITY), stay(OPERATIONAL)),
            (stay(SECURITY), TO_FULL_FEATURE),
            (stay(OPERATIONAL), stay(SECURITY)),
            (TO_OPERATIONAL, stay(SECURITY)),
            (TO_OPERATIONAL, AT_ONCE),
            (TO_OPERATIONAL, stay(FULL_FEATURE)),
            (TO_OPERATIONAL, stay(RESERVED_STAGE)),
        ],
    )
    def test_a_request_for_a_stage_that_login_is_not_in(self, first: int, second: int) -> None:
        subject = Subject()
        subject.send(first, names())
        assert subject.refused(second) == LoginStatus.INITIATOR_ERROR

    def test_nsg_means_nothing_without_t(self) -> None:
        reply = Subject().send(stay(OPERATIONAL) | RESERVED_STAGE, names())
        assert reply.flags == stay(OPERATIONAL)


class TestIdentity:
    @pytest.mark.parametrize("change", [{"isid": bytes(6)}, {"tsih": 9}, {"itt": 2}, {"cid": 2}])
    def test_it_stays_the_same(self, change: dict[str, Any]) -> None:
        subject = Subject()
        subject.send(stay(OPERATIONAL), names())
        assert subject.refused(TO_FULL_FEATURE, **change) == LoginStatus.INITIATOR_ERROR

    @pytest.mark.parametrize(
        ("lowest", "highest", "common"), [(0, 0, True), (0, 5, True), (1, 1, False), (1, 0, False)]
    )
    def test_versions(self, lowest: int, highest: int, common: bool) -> None:
        subject = Subject()
        versions = {"version_min": lowest, "version_max": highest}
        if common:
            assert subject.send(TO_FULL_FEATURE, names(), **versions).agreed
        else:
            status = subject.refused(TO_FULL_FEATURE, names(), **versions)
            assert status == LoginStatus.UNSUPPORTED_VERSION

    def test_the_agreement_says_all_that_a_session_needs(self) -> None:
        subject = Subject()
        alias = ("InitiatorAlias", "node 1")
        subject.send(TO_FULL_FEATURE, [*names(), alias], tsih=5, cid=6)
        agreement = subject.login.agreement
        assert agreement is not None
        assert (agreement.isid, agreement.tsih, agreement.cid) == (ISID, 5, 6)
        assert agreement.initiator_name == INITIATOR_NAME
        assert agreement.initiator_alias == "node 1"
        assert agreement.terms.name == TARGET_NAME
        assert not agreement.discovery
        assert agreement.initiator_port_name == f"{INITIATOR_NAME},i,0x{ISID.hex()}"

    @pytest.mark.parametrize("initiator", [INITIATOR_NAME.upper(), INITIATOR_NAME.title()])
    def test_names_compare_without_case(self, initiator: str) -> None:
        subject = Subject()
        assert subject.send(TO_FULL_FEATURE, names(TARGET_NAME.upper(), initiator)).agreed
        assert subject.login.initiator_name == INITIATOR_NAME


class TestRefusals:
    """A status of section 11.13.5 for each reason."""

    @pytest.mark.parametrize(
        ("pairs", "status"),
        [
            ([], LoginStatus.MISSING_PARAMETER),
            (names()[1:], LoginStatus.MISSING_PARAMETER),
            (names()[:2], LoginStatus.MISSING_PARAMETER),
            (names(initiator_name=""), LoginStatus.MISSING_PARAMETER),
            (names(target_name=""), LoginStatus.MISSING_PARAMETER),
            (names(target_name="iqn.2026-11.lab.example:other"), LoginStatus.NOT_FOUND),
            (names(initiator_name="x" * (NAME_LENGTH + 1)), LoginStatus.INITIATOR_ERROR),
            (names(initiator_name="iqn.a b"), LoginStatus.INITIATOR_ERROR),
            (names(initiator_name="iqn.a\x07b"), LoginStatus.INITIATOR_ERROR),
            # it would end where the name of its SCSI port goes on: `<name>,i,0x<ISID>`
            (names(initiator_name="iqn.a,i,0x400001370000"), LoginStatus.INITIATOR_ERROR),
            ([names()[0], ("SessionType", "Odd")], LoginStatus.SESSION_TYPE_NOT_SUPPORTED),
            ([*names(), names()[0], ("InitiatorName", "iqn.other")], LoginStatus.INITIATOR_ERROR),
            ([*names(), ("InitiatorAlias", "Reject")], LoginStatus.INITIATOR_ERROR),
            ([*names(), ("MaxRecvDataSegmentLength", "1")], LoginStatus.INITIATOR_ERROR),
            (b"InitiatorName\0", LoginStatus.INITIATOR_ERROR),
            (b"InitiatorName=\xff\0", LoginStatus.INITIATOR_ERROR),
        ],
    )
    @pytest.mark.parametrize("flags", [AT_ONCE, TO_FULL_FEATURE])
    def test_what_is_asked_for(self, flags: int, pairs: Pairs | bytes, status: LoginStatus) -> None:
        assert Subject().refused(flags, pairs) == status

    @pytest.mark.parametrize(
        "status", [status for status in LoginStatus if status is not LoginStatus.SUCCESS]
    )
    def test_the_policys_own(self, status: LoginStatus) -> None:
        subject = Subject(refusals={INITIATOR_NAME: status})
        assert subject.refused(TO_FULL_FEATURE, names()) == status

    def test_the_one_refused_is_known_by_name(self) -> None:
        subject = Subject(refusals={INITIATOR_NAME: LoginStatus.AUTHORIZATION_FAILURE})
        subject.refused(TO_FULL_FEATURE, names())
        assert subject.login.initiator_name == INITIATOR_NAME

    def test_a_digest_that_is_required(self) -> None:
        subject = Subject(limits=Limits(header_digest="CRC32C"))
        assert subject.refused(TO_FULL_FEATURE, names()) == LoginStatus.INITIATOR_ERROR

    @pytest.mark.parametrize("flags", [stay(OPERATIONAL), TO_FULL_FEATURE])
    def test_what_belongs_to_the_first_request_cannot_change_later(self, flags: int) -> None:
        subject = Subject()
        subject.send(stay(OPERATIONAL), names())
        other = [("TargetName", "iqn.2026-11.lab.example:other")]
        assert subject.refused(flags, other) == LoginStatus.INITIATOR_ERROR

    def test_the_session_type_belongs_to_the_first_request(self) -> None:
        subject = Subject()
        subject.send(stay(OPERATIONAL), [names()[0], names()[2]])
        late = [("SessionType", "Discovery")]
        assert subject.refused(stay(OPERATIONAL), late) == LoginStatus.INITIATOR_ERROR


class TestContinuation:
    @given(cuts=st.lists(st.integers(0, 200), max_size=6))
    def test_a_request_in_parts_is_answered_when_it_is_whole(self, cuts: list[int]) -> None:
        text = encode_pairs([*names(), ("MaxBurstLength", "4096")])
        subject = Subject()
        start = 0
        for cut in sorted(cuts):
            reply = subject.send(CONTINUE | stay(OPERATIONAL), text[start:cut])
            assert (reply.flags, reply.data, reply.agreed) == (stay(OPERATIONAL), b"", False)
            start = max(start, min(cut, len(text)))
        reply = subject.send(TO_FULL_FEATURE, text[start:])
        assert reply.agreed
        assert keys_of(reply)["MaxBurstLength"] == "4096"

    def test_t_and_c_exclude_each_other(self) -> None:
        status = Subject().refused(CONTINUE | TO_FULL_FEATURE, names())
        assert status == LoginStatus.INITIATOR_ERROR

    def test_the_whole_is_bounded(self) -> None:
        subject = Subject()
        for _ in range(TEXT_TOTAL_LENGTH // LOGIN_SEGMENT_LENGTH):
            subject.send(CONTINUE | stay(OPERATIONAL), b"a" * LOGIN_SEGMENT_LENGTH)
        status = subject.refused(CONTINUE | stay(OPERATIONAL), b"a")
        assert status == LoginStatus.INITIATOR_ERROR

    @pytest.mark.parametrize("flags", [stay(OPERATIONAL), TO_FULL_FEATURE])
    def test_a_long_answer_comes_in_parts(self, flags: int) -> None:
        subject = Subject()
        reply = subject.send(flags, [*names(), SMALL, *UNKNOWN])
        text = b""
        while reply.flags & CONTINUE:
            assert reply.flags == CONTINUE | stay(OPERATIONAL)
            assert len(reply.data) == 512
            assert not reply.agreed
            text += reply.data
            reply = subject.send(flags)
        assert reply.flags == flags
        answers = dict(decode_pairs(text + reply.data))
        assert answers.keys() >= {name for name, _ in UNKNOWN}

    def test_the_move_happens_when_the_last_request_still_asks_for_it(self) -> None:
        """Section 11.13.6: T is set only in answer to T."""
        subject = Subject()
        reply = subject.send(TO_FULL_FEATURE, [*names(), SMALL, *UNKNOWN])
        while reply.flags & CONTINUE:
            reply = subject.send(stay(OPERATIONAL))
        assert (reply.flags, reply.agreed) == (stay(OPERATIONAL), False)
        assert subject.send(TO_FULL_FEATURE).agreed

    def test_keys_while_our_answer_is_unfinished(self) -> None:
        subject = Subject()
        subject.send(stay(OPERATIONAL), [*names(), SMALL, *UNKNOWN])
        assert subject.refused(stay(OPERATIONAL), b"A=b\0") == LoginStatus.INITIATOR_ERROR


class TestAnnouncements:
    @pytest.mark.parametrize("flags", [stay(SECURITY), AT_ONCE, stay(OPERATIONAL)])
    def test_the_first_answer_names_the_portal_group(self, flags: int) -> None:
        reply = Subject(portal_group_tag=7, alias="a disk").send(flags, names())
        assert keys_of(reply)["TargetPortalGroupTag"] == "7"
        assert keys_of(reply)["TargetAlias"] == "a disk"

    def test_once(self) -> None:
        subject = Subject(alias="a disk")
        subject.send(stay(OPERATIONAL), names())
        assert keys_of(subject.send(TO_FULL_FEATURE)) == {}

    def test_our_segment_length_is_declared_in_the_operational_stage(self) -> None:
        subject = Subject(limits=Limits(max_recv_data_segment_length=65536))
        assert "MaxRecvDataSegmentLength" not in keys_of(subject.send(TO_OPERATIONAL, names()))
        reply = subject.send(TO_FULL_FEATURE)
        assert keys_of(reply)["MaxRecvDataSegmentLength"] == "65536"
        assert subject.login.agreement is not None
        assert subject.login.agreement.parameters.max_recv_data_segment_length == 65536

    def test_who_was_not_told_may_send_the_default(self) -> None:
        subject = Subject(limits=Limits(max_recv_data_segment_length=65536))
        assert "MaxRecvDataSegmentLength" not in keys_of(subject.send(AT_ONCE, names()))
        assert subject.login.agreement is not None
        assert subject.login.agreement.parameters.max_recv_data_segment_length == 8192


class TestDiscovery:
    def test_it_names_no_target_and_learns_of_no_portal_group(self) -> None:
        subject = Subject(alias="a disk")
        reply = subject.send(TO_FULL_FEATURE, DISCOVERY_NAMES)
        assert reply.agreed
        assert keys_of(reply).keys() == {"MaxRecvDataSegmentLength"}
        assert subject.login.agreement is not None
        assert subject.login.agreement.discovery

    def test_a_target_name_does_no_harm(self) -> None:
        subject = Subject()
        assert subject.send(TO_FULL_FEATURE, [*DISCOVERY_NAMES, names()[2]]).agreed
        assert subject.login.agreement is not None
        assert subject.login.agreement.terms.name is None

    def test_its_credentials_are_its_own(self) -> None:
        subject = Subject(discovery_credentials=CREDENTIALS)
        status = subject.refused(TO_FULL_FEATURE, DISCOVERY_NAMES)
        assert status == LoginStatus.AUTHENTICATION_FAILURE
        assert Subject(credentials=CREDENTIALS).send(TO_FULL_FEATURE, DISCOVERY_NAMES).agreed


class TestAuthentication:
    METHOD = ("AuthMethod", "CHAP,None")

    @staticmethod
    def secured() -> Subject:
        subject = Subject(credentials=CREDENTIALS)
        reply = subject.send(TO_OPERATIONAL, [*names(), TestAuthentication.METHOD])
        assert reply.flags == stay(SECURITY), "no move before the initiator is known"
        assert keys_of(reply)["AuthMethod"] == "CHAP"
        return subject

    def test_chap(self) -> None:
        reply = self.secured().chap()
        assert reply.agreed
        assert reply.data == b""

    def test_mutual_chap(self) -> None:
        reply = self.secured().chap(CHAP_I="3", CHAP_C="0x" + "ab" * 16)
        assert reply.agreed
        assert keys_of(reply)["CHAP_N"] == "disk"

    def test_method_and_algorithm_in_one_request(self) -> None:
        subject = Subject(credentials=CREDENTIALS)
        reply = subject.send(stay(SECURITY), [*names(), self.METHOD, ("CHAP_A", "5")])
        assert keys_of(reply).keys() >= {"AuthMethod", "CHAP_A", "CHAP_I", "CHAP_C"}

    def test_the_move_may_be_asked_for_later(self) -> None:
        subject = self.secured()
        subject.login.random_bytes = Randomness()
        assert subject.chap().agreed

    @pytest.mark.parametrize("flags", [TO_FULL_FEATURE, stay(OPERATIONAL), TO_OPERATIONAL, AT_ONCE])
    def test_it_cannot_be_skipped(self, flags: int) -> None:
        status = Subject(credentials=CREDENTIALS).refused(flags, names())
        assert status == LoginStatus.AUTHENTICATION_FAILURE

    @pytest.mark.parametrize("flags", [TO_OPERATIONAL, AT_ONCE])
    def test_it_cannot_be_left_half_way(self, flags: int) -> None:
        subject = self.secured()
        assert subject.send(flags).flags == stay(SECURITY)
        subject.send(stay(SECURITY), [("CHAP_A", "7")])
        assert subject.send(flags).flags == stay(SECURITY)

    @pytest.mark.parametrize(
        "keys",
        [
            [("AuthMethod", "None")],
            [("AuthMethod", "KRB5,SRP")],
            [("AuthMethod", "")],
            [("CHAP_A", "7")],
            [("AuthMethod", "CHAP"), ("CHAP_A", "4")],
            [("AuthMethod", "CHAP"), ("CHAP_N", "host"), ("CHAP_R", "0x00")],
            [("AuthMethod", "CHAP"), ("CHAP_A", "7"), ("CHAP_A", "5")],
            [("AuthMethod", "CHAP"), ("CHAP_A", "7," * 200)],
        ],
    )
    def test_what_does_not_authenticate(self, keys: Pairs) -> None:
        subject = Subject(credentials=CREDENTIALS)
        status = subject.refused(stay(SECURITY), [*names(), *keys])
        assert status == LoginStatus.AUTHENTICATION_FAILURE

    @pytest.mark.parametrize(
        "changes",
        [
            {"CHAP_N": "other"},
            {"CHAP_R": "0x" + "00" * 32},
            {"CHAP_R": "0x00"},
            {"CHAP_C": "0x00"},
            {"CHAP_I": "1", "CHAP_C": "0x" + "00" * 1025},
        ],
    )
    def test_a_wrong_answer(self, changes: dict[str, str]) -> None:
        subject = self.secured()
        with pytest.raises(ProtocolError) as caught:
            subject.chap(**changes)
        assert caught.value.status == LoginStatus.AUTHENTICATION_FAILURE

    @pytest.mark.parametrize("keys", [[("AuthMethod", "CHAP")], [("AuthMethod", "None")]])
    def test_the_method_is_chosen_once(self, keys: Pairs) -> None:
        assert self.secured().refused(stay(SECURITY), keys) == LoginStatus.INITIATOR_ERROR

    def test_none_where_none_is_needed(self) -> None:
        reply = Subject().send(AT_ONCE, [*names(), ("AuthMethod", "CHAP,None")])
        assert reply.agreed
        assert keys_of(reply)["AuthMethod"] == "None"

    def test_chap_alone_where_there_is_none(self) -> None:
        status = Subject().refused(AT_ONCE, [*names(), ("AuthMethod", "CHAP")])
        assert status == LoginStatus.AUTHENTICATION_FAILURE

    def test_no_secret_shows(self) -> None:
        subject = self.secured()
        subject.chap()
        for shown in (subject.login, subject.login.agreement):
            for text in (repr(shown), str(shown)):
                assert SECRET.decode() not in text
                assert SECRET.hex() not in text
                assert "another secret" not in text


@given(
    requests=st.lists(
        st.tuples(
            st.integers(0, 255),
            st.one_of(
                st.binary(max_size=60),
                st.lists(
                    st.sampled_from(
                        [
                            *names(),
                            ("AuthMethod", "CHAP,None"),
                            ("CHAP_A", "7,5"),
                            ("CHAP_N", "host"),
                            ("CHAP_R", "0x00"),
                            ("MaxBurstLength", "512"),
                            ("MaxRecvDataSegmentLength", "512"),
                        ]
                    ),
                    max_size=6,
                ).map(encode_pairs),
            ),
        ),
        max_size=6,
    ),
    secured=st.booleans(),
)
def test_any_requests_are_answered_or_refused(
    requests: list[tuple[int, bytes]], secured: bool
) -> None:
    """Whatever comes, nobody gets in without authentication and nothing else is raised."""
    subject = Subject(credentials=CREDENTIALS if secured else None)
    statuses: list[LoginStatus] = []
    for flags, text in requests:
        try:
            reply = subject.send(flags, text)
        except ProtocolError as error:
            statuses.append(error.status)
            break
        assert not reply.flags & TRANSIT or flags & TRANSIT
        if reply.agreed:
            assert not secured
            break
    assert LoginStatus.SUCCESS not in statuses


def test_the_fields_of_a_login_are_its_own() -> None:
    """No state is shared between two logins through a default."""
    first, second = Subject().login, Subject().login
    for item in fields(first):
        value = getattr(first, item.name)
        if isinstance(value, list | dict | set):
            assert value is not getattr(second, item.name)
