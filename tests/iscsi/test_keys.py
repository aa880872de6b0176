"""The key table against section 13 of RFC 7143, row by row, and the negotiation it drives."""

import operator
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.iscsi.keys import (
    IRRELEVANT,
    KEYS,
    NOT_UNDERSTOOD,
    REJECT,
    TABLE,
    Key,
    Limits,
    Negotiation,
    Parameters,
    Phase,
    Sender,
    Value,
    first_common,
    format_value,
)
from pyiscsi_target.iscsi.text import ProtocolError

SECURITY, OPERATIONAL, FULL_FEATURE = Phase.SECURITY, Phase.OPERATIONAL, Phase.FULL_FEATURE
SEGMENT_MAX = 2**24 - 1

# What section 13 says of each key, in the words of its "Use", "Senders", "Default", "Irrelevant
# when" and result function lines.
NUMBERS: dict[str, tuple[Callable[[int, int], int], int, int, int]] = {
    # result function, default, lowest, highest
    "MaxConnections": (min, 1, 1, 65535),
    "MaxBurstLength": (min, 262144, 512, SEGMENT_MAX),
    "FirstBurstLength": (min, 65536, 512, SEGMENT_MAX),
    "DefaultTime2Wait": (max, 2, 0, 3600),
    "DefaultTime2Retain": (min, 20, 0, 3600),
    "MaxOutstandingR2T": (min, 1, 1, 65535),
    "ErrorRecoveryLevel": (min, 0, 0, 2),
    "iSCSIProtocolLevel": (min, 1, 0, 31),
}
BOOLEANS: dict[str, Callable[[bool, bool], bool]] = {
    "InitialR2T": operator.or_,
    "ImmediateData": operator.and_,
    "DataPDUInOrder": operator.or_,
    "DataSequenceInOrder": operator.or_,
}
LISTS = {"HeaderDigest": "None", "DataDigest": "None", "TaskReporting": "RFC3720"}
MARKERS = ["OFMarker", "IFMarker", "OFMarkInt", "IFMarkInt"]
OPERATIONAL_ONLY = {*NUMBERS, *BOOLEANS, *LISTS, *MARKERS}
SECURITY_ONLY = {"AuthMethod", "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R"}
LOGIN_ONLY = {"InitiatorName", "SessionType", "TargetPortalGroupTag"}
EVERYWHERE = {
    "TargetName",
    "TargetAlias",
    "InitiatorAlias",
    "TargetAddress",
    "MaxRecvDataSegmentLength",
}
FROM_INITIATOR = {"InitiatorName", "InitiatorAlias", "SessionType", "SendTargets"}
FROM_TARGET = {"TargetAlias", "TargetAddress", "TargetPortalGroupTag"}
IRRELEVANT_IN_DISCOVERY = {
    "MaxConnections",
    "InitialR2T",
    "ImmediateData",
    "MaxBurstLength",
    "FirstBurstLength",
    "MaxOutstandingR2T",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "TaskReporting",
    "iSCSIProtocolLevel",
}

NOTATIONS: list[Callable[[int], str]] = [str, hex]
YES_NO = [True, False]


def negotiation(
    offers: Mapping[str, Value] | None = None,
    *,
    discovery: bool = False,
    us: Sender = Sender.TARGET,
) -> Negotiation:
    return Negotiation({**Limits().offers(), **(offers or {})}, Parameters(), us, discovery)


def answer(
    name: str, text: str, ours: Value | None = None, phase: Phase = OPERATIONAL
) -> str | None:
    """The target's answer to one offer (None: it needs none)."""
    offers = {} if ours is None else {name: ours}
    answers = negotiation(offers).answer([(name, text)], phase)
    assert len(answers) <= 1
    return answers[0][1] if answers else None


class TestTable:
    def test_it_has_the_keys_of_section_13_and_of_chap(self) -> None:
        named = OPERATIONAL_ONLY | SECURITY_ONLY | LOGIN_ONLY | EVERYWHERE | {"SendTargets"}
        assert set(KEYS) == named
        assert len(TABLE) == len(KEYS)

    @pytest.mark.parametrize("key", TABLE, ids=lambda key: key.name)
    def test_use(self, key: Key) -> None:
        for names, phase in [
            (OPERATIONAL_ONLY, OPERATIONAL),
            (SECURITY_ONLY, SECURITY),
            (LOGIN_ONLY, SECURITY | OPERATIONAL),
            (EVERYWHERE, SECURITY | OPERATIONAL | FULL_FEATURE),
            ({"SendTargets"}, FULL_FEATURE),
        ]:
            if key.name in names:
                assert key.phase == phase

    @pytest.mark.parametrize("key", TABLE, ids=lambda key: key.name)
    def test_senders(self, key: Key) -> None:
        expected = Sender.BOTH
        if key.name in FROM_INITIATOR:
            expected = Sender.INITIATOR
        elif key.name in FROM_TARGET:
            expected = Sender.TARGET
        assert key.sender == expected

    @pytest.mark.parametrize("key", TABLE, ids=lambda key: key.name)
    def test_irrelevance(self, key: Key) -> None:
        assert key.normal_session_only is (key.name in IRRELEVANT_IN_DISCOVERY)

    def test_defaults(self) -> None:
        defaults: dict[str, Value] = {name: row[1] for name, row in NUMBERS.items()}
        defaults |= dict.fromkeys(BOOLEANS, True)
        defaults |= LISTS
        defaults |= {"MaxRecvDataSegmentLength": 8192, "SessionType": "Normal"}
        defaults["AuthMethod"] = "None"
        assert {key.name: key.default for key in TABLE if key.default is not None} == defaults

    def test_what_is_undeclared_has_its_default(self) -> None:
        """The one other place that states defaults agrees with the table."""
        parameters = Parameters()
        assert parameters.initial_r2t is KEYS["InitialR2T"].default
        assert parameters.immediate_data is KEYS["ImmediateData"].default
        assert parameters.max_burst_length == KEYS["MaxBurstLength"].default
        assert parameters.first_burst_length == KEYS["FirstBurstLength"].default
        assert parameters.default_time2wait_s == KEYS["DefaultTime2Wait"].default
        assert parameters.default_time2retain_s == KEYS["DefaultTime2Retain"].default
        assert parameters.max_outstanding_r2t == KEYS["MaxOutstandingR2T"].default
        assert parameters.protocol_level == KEYS["iSCSIProtocolLevel"].default
        segment_length = KEYS["MaxRecvDataSegmentLength"].default
        assert parameters.max_recv_data_segment_length == segment_length
        assert parameters.max_send_data_segment_length == segment_length
        assert not parameters.header_digest
        assert not parameters.data_digest


@pytest.mark.parametrize("name", NUMBERS)
class TestNumbers:
    @given(data=st.data())
    def test_result(self, name: str, data: st.DataObject) -> None:
        function, _, lowest, highest = NUMBERS[name]
        ours = data.draw(st.integers(lowest, highest))
        theirs = data.draw(st.integers(lowest, highest))
        notation = data.draw(st.sampled_from(NOTATIONS))
        assert answer(name, notation(theirs), ours) == str(function(ours, theirs))

    def test_edges_of_the_range(self, name: str) -> None:
        _, _, lowest, highest = NUMBERS[name]
        assert answer(name, str(lowest), lowest) == str(lowest)
        assert answer(name, str(highest), highest) == str(highest)
        assert answer(name, str(highest + 1), highest) == REJECT
        assert answer(name, str(lowest - 1), lowest) == REJECT

    @pytest.mark.parametrize("text", ["", "x", "Yes", "1.5", "+1", " 1", "1,2", "0x", "1~2"])
    def test_no_number(self, name: str, text: str) -> None:
        assert answer(name, text) == REJECT


@pytest.mark.parametrize("name", BOOLEANS)
class TestBooleans:
    @pytest.mark.parametrize("ours", YES_NO)
    @pytest.mark.parametrize("theirs", YES_NO)
    def test_result(self, name: str, ours: bool, theirs: bool) -> None:
        expected = BOOLEANS[name](ours, theirs)
        assert answer(name, format_value(theirs), ours) == format_value(expected)

    @pytest.mark.parametrize("text", ["", "yes", "NO", "true", "1", "Yes,No", " Yes"])
    def test_neither_yes_nor_no(self, name: str, text: str) -> None:
        assert answer(name, text) == REJECT


@pytest.mark.parametrize("name", LISTS)
class TestLists:
    @pytest.mark.parametrize(
        ("ours", "offer", "result"),
        [
            ("a,b", "a,b", "a"),
            ("a,b", "b,a", "b"),  # the order of the one who offers (section 6.2.1)
            ("b", "a,b", "b"),
            ("a,b", "c,b", "b"),
            ("a", "b", REJECT),
            ("a", "", REJECT),
            ("a,b", "a,a", "a"),
            ("a,b", "A,B", REJECT),  # values are case sensitive
        ],
    )
    def test_result(self, name: str, ours: str, offer: str, result: str) -> None:
        assert answer(name, offer, ours) == result
        assert first_common(ours, offer) == result

    def test_a_value_that_is_too_long(self, name: str) -> None:
        assert answer(name, "x," * 127 + "a", "a") == "a"
        assert answer(name, "x," * 127 + "aa", "aa") == REJECT


@pytest.mark.parametrize("name", MARKERS)
@pytest.mark.parametrize("text", ["Yes", "No", "2048~8192", "2048"])
def test_markers_are_gone_but_understood(name: str, text: str) -> None:
    """Section 13.25: the answer is never NotUnderstood."""
    assert answer(name, text) == REJECT


class TestDeclarations:
    @pytest.mark.parametrize("number", [512, 8192, SEGMENT_MAX])
    def test_the_peers_segment_length(self, number: int) -> None:
        running = negotiation()
        pairs = [("MaxRecvDataSegmentLength", str(number))]
        assert running.answer(pairs, OPERATIONAL) == []
        assert running.parameters.max_send_data_segment_length == number
        assert running.parameters.max_recv_data_segment_length == 8192

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("MaxRecvDataSegmentLength", "511"),
            ("MaxRecvDataSegmentLength", str(SEGMENT_MAX + 1)),
            ("MaxRecvDataSegmentLength", ""),
            ("InitiatorName", "x" * 256),
            ("InitiatorAlias", "é" * 128),
        ],
    )
    def test_a_bad_one_cannot_be_answered(self, name: str, text: str) -> None:
        with pytest.raises(ProtocolError, match=name):
            answer(name, text)

    def test_they_are_kept(self) -> None:
        running = negotiation()
        assert running.answer([("InitiatorAlias", "é" * 127)], OPERATIONAL) == []
        assert running.declared == {"InitiatorAlias": "é" * 127}


class TestPlaces:
    @pytest.mark.parametrize(
        ("name", "phase"),
        [
            (key.name, phase)
            for key in TABLE
            for phase in (SECURITY, OPERATIONAL, FULL_FEATURE)
            if not phase & key.phase
        ],
    )
    def test_a_key_in_the_wrong_phase_is_rejected(self, name: str, phase: Phase) -> None:
        assert answer(name, "1", phase=phase) == REJECT

    @pytest.mark.parametrize("name", sorted(FROM_TARGET))
    def test_a_key_from_the_wrong_side(self, name: str) -> None:
        assert answer(name, "1") == REJECT

    @pytest.mark.parametrize("name", sorted(FROM_INITIATOR - {"SendTargets"}))
    def test_the_same_seen_from_the_initiator(self, name: str) -> None:
        running = negotiation(us=Sender.INITIATOR)
        assert running.answer([(name, "x")], OPERATIONAL) == [(name, REJECT)]

    @pytest.mark.parametrize("name", sorted(IRRELEVANT_IN_DISCOVERY))
    def test_what_has_no_meaning_in_discovery(self, name: str) -> None:
        text = format_value(KEYS[name].default or 1)
        running = negotiation(discovery=True)
        assert running.answer([(name, text)], OPERATIONAL) == [(name, IRRELEVANT)]
        assert running.parameters == Parameters()

    @pytest.mark.parametrize("name", ["X-com.example.key", "Nonsense", "maxburstlength"])
    def test_an_unknown_key(self, name: str) -> None:
        assert answer(name, "value") == NOT_UNDERSTOOD


class TestNegotiation:
    def test_answers_come_in_the_order_of_the_offers(self) -> None:
        offers = [("ImmediateData", "Yes"), ("Unknown", "1"), ("MaxConnections", "9")]
        assert negotiation().answer(offers, OPERATIONAL) == [
            ("ImmediateData", "Yes"),
            ("Unknown", NOT_UNDERSTOOD),
            ("MaxConnections", "1"),
        ]

    def test_results_become_parameters(self) -> None:
        running = negotiation({"InitialR2T": False})
        running.answer(
            [
                ("HeaderDigest", "CRC32C,None"),
                ("DataDigest", "None,CRC32C"),
                ("InitialR2T", "No"),
                ("ImmediateData", "No"),
                ("MaxBurstLength", "16384"),
                ("FirstBurstLength", "8192"),
                ("DefaultTime2Wait", "7"),
                ("DefaultTime2Retain", "9"),
                ("MaxOutstandingR2T", "3"),
                ("iSCSIProtocolLevel", "2"),
            ],
            OPERATIONAL,
        )
        assert running.parameters == Parameters(
            header_digest=True,
            data_digest=False,
            initial_r2t=False,
            immediate_data=False,
            max_burst_length=16384,
            first_burst_length=8192,
            default_time2wait_s=7,
            default_time2retain_s=0,
            max_outstanding_r2t=3,
            protocol_level=2,
        )

    @pytest.mark.parametrize(
        ("name", "text"), [("MaxBurstLength", "1"), ("HeaderDigest", "CRC64"), ("InitialR2T", "x")]
    )
    def test_a_rejected_offer_changes_nothing(self, name: str, text: str) -> None:
        running = negotiation()
        assert running.answer([(name, text)], OPERATIONAL) == [(name, REJECT)]
        assert running.parameters == Parameters()

    @pytest.mark.parametrize("second", [("MaxBurstLength", "2048"), ("MaxBurstLength", "1024")])
    def test_a_key_is_negotiated_once(self, second: tuple[str, str]) -> None:
        first = ("MaxBurstLength", "1024")
        with pytest.raises(ProtocolError, match="before"):
            negotiation().answer([first, second], OPERATIONAL)
        running = negotiation()
        running.answer([first], OPERATIONAL)
        with pytest.raises(ProtocolError, match="before"):
            running.answer([second], OPERATIONAL)

    def test_a_declaration_may_be_repeated_but_not_changed(self) -> None:
        """As libiscsi does at each stage."""
        running = negotiation()
        assert running.answer([("InitiatorName", "iqn.a")] * 2, OPERATIONAL) == []
        with pytest.raises(ProtocolError, match="before"):
            running.answer([("InitiatorName", "iqn.b")], OPERATIONAL)

    @pytest.mark.parametrize("text", [NOT_UNDERSTOOD, IRRELEVANT, REJECT])
    def test_the_reserved_words_are_no_offers(self, text: str) -> None:
        with pytest.raises(ProtocolError, match="answers nothing"):
            answer("MaxBurstLength", text)


class TestFinish:
    def test_the_bursts_agree_by_default(self) -> None:
        running = negotiation()
        running.finish()
        assert running.parameters == Parameters()

    def test_first_burst_shrinks_with_max_burst(self) -> None:
        running = negotiation()
        running.answer([("MaxBurstLength", "4096")], OPERATIONAL)
        running.finish()
        assert running.parameters.first_burst_length == 4096

    def test_an_offer_of_more_first_burst_than_burst(self) -> None:
        running = negotiation()
        offers = [("MaxBurstLength", "4096"), ("FirstBurstLength", "4097")]
        running.answer(offers, OPERATIONAL)
        with pytest.raises(ProtocolError, match="above MaxBurstLength"):
            running.finish()

    @pytest.mark.parametrize("name", ["HeaderDigest", "DataDigest"])
    @pytest.mark.parametrize("offer", [None, "None", "CRC64"])
    def test_a_required_digest(self, name: str, offer: str | None) -> None:
        running = negotiation({name: "CRC32C"})
        running.answer([(name, offer)] if offer else [], OPERATIONAL)
        with pytest.raises(ProtocolError, match=f"{name}=CRC32C is required"):
            running.finish()

    @pytest.mark.parametrize("name", ["HeaderDigest", "DataDigest"])
    def test_a_required_digest_that_was_agreed(self, name: str) -> None:
        running = negotiation({name: "CRC32C"})
        running.answer([(name, "None,CRC32C")], OPERATIONAL)
        running.finish()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(KEYS)) | st.text("ABab-.", min_size=1, max_size=5),
            st.sampled_from(["Yes", "No", "1", "512", "0", "None", "CRC32C", "Reject", "x,y", ""])
            | st.text(max_size=10),
        ),
        max_size=8,
    ),
    st.sampled_from([SECURITY, OPERATIONAL, FULL_FEATURE]),
    st.booleans(),
)
def test_any_offer_is_answered_or_refused(
    offers: list[tuple[str, str]], phase: Phase, discovery: bool
) -> None:
    running = negotiation(discovery=discovery)
    try:
        answers = running.answer(offers, phase)
        running.finish()
    except ProtocolError:
        return
    offered = [name for name, _ in offers]
    assert [name for name, _ in answers if name not in offered] == []
    assert running.parameters.first_burst_length <= running.parameters.max_burst_length
