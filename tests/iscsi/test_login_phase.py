"""The login phase's wire: numbered responses, the TSIH, and the end that a refusal makes."""

from typing import Any

import pytest

from pyiscsi_target.iscsi.constants import TRANSIT, LoginStatus
from pyiscsi_target.iscsi.login_phase import LOGIN_REQUESTS_MAX, LoginPhase
from pyiscsi_target.iscsi.pdu import LoginRequest, LoginResponse
from pyiscsi_target.iscsi.responses import ResponseWriter
from pyiscsi_target.iscsi.text import ProtocolError, encode_pairs
from tests.support.memory import ISID, Answer, Policy, Randomness, decode_stream, names

STAY, FINISH = 0x04, TRANSIT | 0x07
FIRST_STAT_SN = 0xFFFFFFFF
WRAP = 1 << 32


class Subject:
    def __init__(self, **policy: Any) -> None:
        self.writer = ResponseWriter(FIRST_STAT_SN)
        self.phase = LoginPhase(Policy(**policy), Randomness(), self.writer)

    def send(self, flags: int, data: bytes = b"", **header: Any) -> list[Answer]:
        request = LoginRequest(flags=flags, isid=ISID, itt=4, cid=1, cmd_sn=50, **header)
        self.agreement = self.phase.receive(request, data)
        return self.sent()

    def sent(self) -> list[Answer]:
        stream = b"".join(self.writer.outgoing)
        self.writer.outgoing.clear()
        return decode_stream(stream)


def response_of(answers: list[Answer]) -> LoginResponse:
    ((response, _),) = answers
    assert isinstance(response, LoginResponse)
    return response


NAMES = encode_pairs(names())


def test_each_request_gets_one_numbered_response() -> None:
    subject = Subject()
    responses = [response_of(subject.send(STAY, data)) for data in (NAMES, b"", b"")]
    assert [each.stat_sn for each in responses] == [FIRST_STAT_SN, 0, 1]
    for response in responses:
        assert (response.isid, response.itt, response.tsih) == (ISID, 4, 0)
        assert (response.version_max, response.version_active, response.status) == (0, 0, 0)
        assert response.exp_cmd_sn == 50


def test_the_last_response_waits_for_the_servers_word() -> None:
    subject = Subject(queue_depth=9)
    assert subject.send(FINISH, NAMES) == []
    assert subject.agreement is not None
    assert subject.phase.accept(77) is subject.agreement
    response = response_of(subject.sent())
    assert (response.flags, response.tsih, response.status) == (FINISH, 77, 0)
    assert (response.exp_cmd_sn, response.max_cmd_sn) == (50, 58)


@pytest.mark.parametrize("cmd_sn", [0, WRAP - 1, WRAP - 4])
def test_the_window_wraps(cmd_sn: int) -> None:
    subject = Subject(queue_depth=8)
    subject.phase.receive(LoginRequest(flags=FINISH, cmd_sn=cmd_sn), NAMES)
    subject.phase.accept(1)
    response = response_of(subject.sent())
    assert (response.exp_cmd_sn, response.max_cmd_sn) == (cmd_sn, (cmd_sn + 7) % WRAP)


@pytest.mark.parametrize("status", [LoginStatus.OUT_OF_RESOURCES, LoginStatus(0x020A)])
def test_a_refusal_answers_the_last_request(status: LoginStatus) -> None:
    subject = Subject()
    subject.send(FINISH, NAMES, tsih=3)
    subject.phase.refuse(status)
    response = response_of(subject.sent())
    assert (response.status, response.flags, response.tsih) == (status, 0x04, 3)
    assert (response.isid, response.itt) == (ISID, 4)


def test_who_never_began_is_not_answered() -> None:
    subject = Subject()
    assert not subject.phase.begun
    subject.phase.refuse(LoginStatus.INITIATOR_ERROR)
    assert subject.sent() == []


def test_requests_are_bounded() -> None:
    subject = Subject()
    subject.send(STAY, NAMES)
    for _ in range(LOGIN_REQUESTS_MAX - 1):
        subject.send(STAY)
    with pytest.raises(ProtocolError, match="too many"):
        subject.send(STAY)


def test_nothing_is_read_after_the_final_request() -> None:
    subject = Subject()
    subject.send(FINISH, NAMES)
    with pytest.raises(ProtocolError):
        subject.send(FINISH)
