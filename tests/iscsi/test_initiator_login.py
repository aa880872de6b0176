"""The initiator's side of login against a target that does not do as it should."""

from collections.abc import Iterable

import pytest

from pyiscsi_target.iscsi.chap import AuthenticationFailure, Credentials
from pyiscsi_target.iscsi.constants import CONTINUE, TRANSIT
from pyiscsi_target.iscsi.initiator_login import InitiatorLogin, InitiatorSettings, LoginRefused
from pyiscsi_target.iscsi.keys import Limits
from pyiscsi_target.iscsi.pdu import LoginResponse
from pyiscsi_target.iscsi.text import Pairs, ProtocolError, decode_pairs, encode_pairs
from tests.support.memory import INITIATOR_NAME, TARGET_NAME, Randomness

OPERATIONAL = TRANSIT | 1 << 2 | 3
SECURITY = TRANSIT | 1
CREDENTIALS = Credentials("host", b"a secret of some length", "disk", b"another secret")


def begun(**fields: object) -> InitiatorLogin:
    known = {"initiator_name": INITIATOR_NAME, "target_name": TARGET_NAME, "security_stage": False}
    login = InitiatorLogin(InitiatorSettings(**{**known, **fields}), Randomness())  # type: ignore[arg-type]
    login.begin()
    return login


def answer(
    login: InitiatorLogin,
    pairs: Iterable[tuple[str, str]] = (),
    flags: int = OPERATIONAL,
    status: int = 0,
) -> tuple[int, bytes] | None:
    return login.receive(LoginResponse(flags=flags, status=status), encode_pairs(list(pairs)))


def test_an_empty_answer_leaves_the_defaults() -> None:
    login = begun()
    assert answer(login) is None
    assert login.done
    assert login.parameters.initial_r2t is True
    assert login.parameters.max_burst_length == 262144
    assert login.parameters.max_recv_data_segment_length == 262144


@pytest.mark.parametrize(
    "pair",
    [
        ("MaxBurstLength", "2097152"),
        ("MaxBurstLength", "511"),
        ("MaxBurstLength", "a lot"),
        ("DefaultTime2Wait", "1"),
        ("HeaderDigest", "CRC64"),
        ("ErrorRecoveryLevel", "1"),
        ("DataPDUInOrder", "No"),
    ],
)
def test_a_result_that_the_offer_cannot_have(pair: tuple[str, str]) -> None:
    with pytest.raises(ProtocolError):
        answer(begun(), [pair])


@pytest.mark.parametrize("value", ["Reject", "Irrelevant", "NotUnderstood"])
def test_a_key_that_is_refused_keeps_its_default(value: str) -> None:
    login = begun(limits=Limits(first_burst_length=131072))
    assert answer(login, [("FirstBurstLength", value)]) is None
    assert login.parameters.first_burst_length == 65536


def test_what_the_target_offers_is_answered() -> None:
    login = begun(target_name=None)
    request = answer(login, [("MaxConnections", "4")], flags=1 << 2)
    assert request is not None
    assert decode_pairs(request[1]) == [("MaxConnections", "Irrelevant")]


@pytest.mark.parametrize("flags", [SECURITY, OPERATIONAL | CONTINUE, TRANSIT | 1 << 2 | 2])
def test_flags_that_do_not_fit_the_request(flags: int) -> None:
    with pytest.raises(ProtocolError):
        answer(begun(), flags=flags)


def test_an_answer_in_parts_is_asked_for_and_joined() -> None:
    login = begun()
    first = LoginResponse(flags=CONTINUE | 1 << 2)
    assert login.receive(first, b"MaxBurst") == (OPERATIONAL, b"")
    assert login.receive(LoginResponse(flags=OPERATIONAL), b"Length=4096\0") is None
    assert login.parameters.max_burst_length == 4096


def test_a_redirection_tells_where_to() -> None:
    with pytest.raises(LoginRefused) as raised:
        answer(begun(), [("TargetAddress", "10.0.0.9:3260")], status=0x0101)
    assert (raised.value.status_code, raised.value.target_address) == (0x0101, "10.0.0.9:3260")


@pytest.mark.parametrize("method", ["None", "KRB5", "Reject"])
def test_no_other_method_than_the_one_offered(method: str) -> None:
    login = begun(security_stage=True, credentials=CREDENTIALS)
    with pytest.raises(AuthenticationFailure):
        answer(login, [("AuthMethod", method)], flags=0)


@pytest.mark.parametrize(
    "pairs",
    [
        [("CHAP_A", "5"), ("CHAP_I", "1")],
        [("CHAP_A", "99"), ("CHAP_I", "1"), ("CHAP_C", "0x" + "00" * 16)],
        [("CHAP_A", "5"), ("CHAP_I", "256"), ("CHAP_C", "0x" + "00" * 16)],
        [("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "zero")],
        [("CHAP_N", "disk"), ("CHAP_R", "0x00")],
    ],
)
def test_a_challenge_that_is_none(pairs: Pairs) -> None:
    login = begun(security_stage=True, credentials=CREDENTIALS)
    assert answer(login, [("AuthMethod", "CHAP")], flags=0) is not None
    with pytest.raises(AuthenticationFailure):
        answer(login, pairs, flags=0)


def test_a_target_that_skips_its_own_proof() -> None:
    login = begun(security_stage=True, credentials=CREDENTIALS)
    answer(login, [("AuthMethod", "CHAP")], flags=0)
    challenge = [("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0x" + "00" * 16)]
    request = answer(login, challenge, flags=0)
    assert request is not None
    assert {"CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"} == {
        name for name, _ in decode_pairs(request[1])
    }
    answer(login, flags=SECURITY)
    with pytest.raises(AuthenticationFailure):
        answer(login)
