"""Text in full feature phase: SendTargets, renegotiation, and both ways of continuing."""

from typing import Any

import pytest

from pyiscsi_target.iscsi.constants import CONTINUE, FINAL, RESERVED_TAG, RejectReason
from pyiscsi_target.iscsi.keys import NOT_UNDERSTOOD, REJECT, Parameters
from pyiscsi_target.iscsi.login import Agreement, Terms
from pyiscsi_target.iscsi.pdu import TextRequest, TextResponse
from pyiscsi_target.iscsi.responses import ResponseWriter
from pyiscsi_target.iscsi.text import (
    TEXT_TOTAL_LENGTH,
    Pairs,
    ProtocolError,
    decode_pairs,
    encode_pairs,
)
from pyiscsi_target.iscsi.text_exchange import TextExchange
from tests.support.memory import (
    INITIATOR_NAME,
    ISID,
    TARGET_NAME,
    Answer,
    Policy,
    decode_stream,
)

OTHER_TARGET = "iqn.2026-11.lab.example:other"
TARGETS = {
    TARGET_NAME: ["192.0.2.1:3260,1", "[2001:db8::1]:3260,1"],
    OTHER_TARGET: ["192.0.2.1:3260,2"],
}
OWN = [("TargetName", TARGET_NAME), *(("TargetAddress", each) for each in TARGETS[TARGET_NAME])]
OTHER = [("TargetName", OTHER_TARGET), ("TargetAddress", "192.0.2.1:3260,2")]
ALL = [("SendTargets", "All")]


class Subject:
    def __init__(self, target: str | None = None, segment: int = 8192) -> None:
        self.writer = ResponseWriter(100)
        self.writer.limit_lengths(segment, 262144)
        self.policy = Policy(targets=TARGETS)
        self.parameters = Parameters(max_send_data_segment_length=segment)
        terms = Terms(target, self.policy.limits)
        agreement = Agreement(INITIATOR_NAME, ISID, 0, 1, terms, self.parameters)
        self.exchange = TextExchange(self.policy, agreement, self.writer)

    def send(
        self, pairs: Pairs | bytes = b"", flags: int = FINAL, ttt: int = RESERVED_TAG, **fields: Any
    ) -> Answer:
        text = pairs if isinstance(pairs, bytes) else encode_pairs(pairs)
        request = TextRequest(flags=flags, ttt=ttt, **{"itt": 5, **fields})
        self.exchange.receive(request, text)
        (answer,) = decode_stream(b"".join(self.writer.outgoing))
        self.writer.outgoing.clear()
        assert isinstance(answer[0], TextResponse)
        assert answer[0].itt == request.itt
        assert (answer[0].ttt == RESERVED_TAG) is bool(answer[0].flags & FINAL)
        return answer

    def answers(self, pairs: Pairs, **fields: Any) -> Pairs:
        """The answer to a request that fits one PDU both ways."""
        response, data = self.send(pairs, **fields)
        assert response.flags == FINAL
        return decode_pairs(data)

    def refused(self, pairs: Pairs | bytes = b"", **fields: Any) -> RejectReason:
        with pytest.raises(ProtocolError) as caught:
            self.send(pairs, **fields)
        return caught.value.reason


class TestSendTargets:
    """Appendix C."""

    @pytest.mark.parametrize(
        ("own", "wish", "answers"),
        [
            (None, "All", [*OWN, *OTHER]),
            (None, TARGET_NAME, OWN),
            (None, TARGET_NAME.upper(), OWN),
            (None, "iqn.2026-11.lab.example:none", []),
            (None, "", [("SendTargets", REJECT)]),
            (TARGET_NAME, "", OWN),
            (TARGET_NAME, TARGET_NAME, OWN),
            (TARGET_NAME, "All", [("SendTargets", REJECT)]),
            (TARGET_NAME, OTHER_TARGET, [("SendTargets", REJECT)]),
        ],
    )
    def test_what_is_told(self, own: str | None, wish: str, answers: Pairs) -> None:
        assert Subject(own).answers([("SendTargets", wish)]) == answers

    def test_once_a_request(self) -> None:
        """Section 6.2: no key twice; else a small request draws an answer of any size."""
        assert Subject().refused(ALL * 200) == RejectReason.PROTOCOL_ERROR


class TestNegotiation:
    @pytest.mark.parametrize(
        ("pair", "answers"),
        [
            (("X-com.example.key", "1"), [("X-com.example.key", NOT_UNDERSTOOD)]),
            (("MaxBurstLength", "512"), [("MaxBurstLength", REJECT)]),
            (("HeaderDigest", "CRC32C"), [("HeaderDigest", REJECT)]),
            (("AuthMethod", "None"), [("AuthMethod", REJECT)]),
            (("InitiatorName", "iqn.x"), [("InitiatorName", REJECT)]),
            (("InitiatorAlias", "node 1"), []),
            (("MaxRecvDataSegmentLength", "4096"), []),
        ],
    )
    def test_what_may_change(self, pair: tuple[str, str], answers: Pairs) -> None:
        assert Subject().answers([pair]) == answers

    def test_the_segment_length_holds_from_now_on(self) -> None:
        subject = Subject()
        subject.answers([("MaxRecvDataSegmentLength", "512")])
        assert subject.writer.max_segment_length == 512

    @pytest.mark.parametrize(
        "pairs",
        [
            b"junk\0",
            [("MaxRecvDataSegmentLength", "511")],
            [("MaxRecvDataSegmentLength", "512"), ("MaxRecvDataSegmentLength", "1024")],
            [("InitiatorAlias", REJECT)],
        ],
    )
    def test_what_is_refused(self, pairs: Pairs | bytes) -> None:
        assert Subject().refused(pairs) == RejectReason.PROTOCOL_ERROR

    def test_a_failed_negotiation_changes_nothing(self) -> None:
        """Section 7.11."""
        subject = Subject()
        subject.refused([("MaxRecvDataSegmentLength", "512"), ("InitiatorAlias", REJECT)])
        subject.answers([])
        assert subject.parameters.max_send_data_segment_length == 8192
        assert subject.writer.max_segment_length == 8192

    def test_an_exchange_after_a_refused_one_is_new(self) -> None:
        subject = Subject()
        subject.refused(b"junk\0")
        assert subject.answers(ALL) == [*OWN, *OTHER]


class TestLongRequest:
    @pytest.mark.parametrize("cut", range(1, 17, 3))
    def test_parts_are_joined(self, cut: int) -> None:
        subject, text = Subject(), encode_pairs(ALL)
        response, data = subject.send(text[:cut], CONTINUE)
        assert (response.flags, data) == (0, b"")
        assert decode_pairs(subject.send(text[cut:], FINAL, response.ttt)[1]) == [*OWN, *OTHER]

    def test_f_is_not_answered_before_it_is_asked_for(self) -> None:
        subject = Subject()
        response, data = subject.send(ALL, 0)
        assert response.flags == 0
        assert decode_pairs(data) == [*OWN, *OTHER]
        response, data = subject.send(b"", FINAL, response.ttt)
        assert (response.flags, data) == (FINAL, b"")

    def test_f_and_c_exclude_each_other(self) -> None:
        assert Subject().refused(ALL, flags=FINAL | CONTINUE) == RejectReason.INVALID_PDU_FIELD

    @pytest.mark.parametrize("change", [{"ttt": 99}, {"itt": 6}])
    def test_a_continuation_of_nothing(self, change: dict[str, int]) -> None:
        subject = Subject()
        response, _ = subject.send(b"Send", CONTINUE)
        fields = {"ttt": response.ttt, **change}
        assert subject.refused(b"Targets=All\0", **fields) == RejectReason.INVALID_PDU_FIELD

    def test_a_continuation_after_the_end(self) -> None:
        subject = Subject()
        response, _ = subject.send(ALL, 0)
        subject.send(b"", FINAL, response.ttt)
        assert subject.refused(b"", ttt=response.ttt) == RejectReason.INVALID_PDU_FIELD

    def test_a_new_request_forgets_the_unfinished_one(self) -> None:
        subject = Subject()
        subject.send(b"X-left=", CONTINUE)
        assert subject.answers(ALL, itt=9) == [*OWN, *OTHER]

    def test_the_whole_is_bounded(self) -> None:
        subject = Subject()
        response, _ = subject.send(b"a" * 8192, CONTINUE)
        for _ in range(TEXT_TOTAL_LENGTH // 8192 - 1):
            subject.send(b"a" * 8192, CONTINUE, response.ttt)
        refused = subject.refused(b"a", flags=CONTINUE, ttt=response.ttt)
        assert refused == RejectReason.PROTOCOL_ERROR


class TestLongAnswer:
    @pytest.mark.parametrize("segment", [1, 7, 50, 100])
    def test_it_comes_in_parts(self, segment: int) -> None:
        subject = Subject(segment=segment)
        response, data = subject.send(ALL)
        text = data
        stat_sns = [response.stat_sn]
        while response.flags & CONTINUE:
            assert not response.flags & FINAL
            assert len(data) == segment
            response, data = subject.send(b"", FINAL, response.ttt)
            stat_sns.append(response.stat_sn)
            text += data
        assert decode_pairs(text) == [*OWN, *OTHER]
        assert stat_sns == [*range(100, 100 + len(stat_sns))]

    def test_a_new_request_forgets_the_rest(self) -> None:
        subject = Subject(segment=50)
        subject.send(ALL)
        assert subject.send([], itt=9)[1] == b""

    def test_keys_while_our_answer_is_unfinished(self) -> None:
        """As in login: the next request must be empty (section 6.2)."""
        subject = Subject(segment=50)
        response, _ = subject.send(ALL)
        assert subject.refused([("InitiatorAlias", "x")], ttt=response.ttt)
