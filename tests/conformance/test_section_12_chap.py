"""RFC 7143 sections 9.2.1 and 12.1: AuthMethod and CHAP, on the target's side."""

import base64
from typing import Any

import pytest

from pyiscsi_target.iscsi.chap import ChapAuthenticator, Credentials, chap_response
from pyiscsi_target.iscsi.constants import TRANSIT, LoginStatus
from pyiscsi_target.iscsi.text import decode_pairs, format_binary, parse_binary
from tests.support.memory import DISCOVERY_NAMES, Policy, RawPeer, Target, names

SECRET = b"a secret of some length"
OTHER_SECRET = b"another secret of length"
POLICY = Policy(credentials=Credentials("host", SECRET, "disk", OTHER_SECRET))
STAY = 0
LEAVE = TRANSIT | 1

Keys = dict[str, str]


def exchange(peer: RawPeer, *pairs: tuple[str, str], flags: int = STAY) -> tuple[Any, Keys]:
    response, data = peer.login(pairs, flags)
    return response, dict(decode_pairs(data))


def challenged(algorithm: str = "5", policy: Policy = POLICY) -> tuple[RawPeer, Keys]:
    """A login that has got as far as the target's challenge."""
    peer = RawPeer(Target(policy))
    _, keys = exchange(peer, *names(), ("AuthMethod", "CHAP,None"))
    assert keys["AuthMethod"] == "CHAP"
    _, keys = exchange(peer, ("CHAP_A", algorithm))
    return peer, keys


def proof(keys: Keys, secret: bytes = SECRET) -> tuple[str, str]:
    challenge = parse_binary(keys["CHAP_C"])
    response = chap_response(keys["CHAP_A"], int(keys["CHAP_I"]), secret, challenge)
    return "CHAP_R", format_binary(response)


def assert_refused(response: Any, peer: RawPeer) -> None:
    assert response.status == LoginStatus.AUTHENTICATION_FAILURE
    assert peer.closed


@pytest.mark.parametrize("offer", ["KRB5,CHAP,None", "None,CHAP", "CHAP"])
def test_12_1_the_required_method_is_chosen(offer: str) -> None:
    _, keys = exchange(RawPeer(Target(POLICY)), *names(), ("AuthMethod", offer))
    assert keys["AuthMethod"] == "CHAP"


@pytest.mark.parametrize("offer", ["None", "KRB5,SRP", "NotAMethod"])
def test_12_1_no_common_method(offer: str) -> None:
    peer = RawPeer(Target(POLICY))
    response, _ = exchange(peer, *names(), ("AuthMethod", offer), flags=LEAVE)
    assert_refused(response, peer)


def test_12_1_none_where_nothing_is_required() -> None:
    response, keys = exchange(RawPeer(), *names(), ("AuthMethod", "CHAP,None"), flags=LEAVE)
    assert (keys["AuthMethod"], response.flags) == ("None", LEAVE)


@pytest.mark.parametrize(
    ("offer", "choice"), [("5", "5"), ("7,5", "7"), ("5,8", "5"), ("99,6,8", "6")]
)
def test_12_1_3_the_initiators_order_of_algorithms(offer: str, choice: str) -> None:
    _, keys = challenged(offer)
    assert keys["CHAP_A"] == choice
    assert {"CHAP_I", "CHAP_C"} <= keys.keys()


def test_12_1_3_no_common_algorithm() -> None:
    peer = RawPeer(Target(POLICY))
    exchange(peer, *names(), ("AuthMethod", "CHAP"))
    response, _ = exchange(peer, ("CHAP_A", "99,1"))
    assert_refused(response, peer)


@pytest.mark.parametrize("algorithm", ["5", "6", "7", "8"])
def test_12_1_3_the_right_answer_admits(algorithm: str) -> None:
    peer, keys = challenged(algorithm)
    response, keys = exchange(peer, ("CHAP_N", "host"), proof(keys), flags=LEAVE)
    assert (response.status, response.flags) == (0, LEAVE)
    assert "CHAP_R" not in keys, "the target proves itself only when it is challenged"


def test_12_1_3_a_proof_in_base64() -> None:
    peer, keys = challenged()
    raw = parse_binary(proof(keys)[1])
    in_base64 = "0b" + base64.b64encode(raw).decode()
    response, _ = exchange(peer, ("CHAP_N", "host"), ("CHAP_R", in_base64), flags=LEAVE)
    assert response.status == 0


@pytest.mark.parametrize("name", ["host ", "disk", ""])
def test_12_1_3_a_wrong_name(name: str) -> None:
    peer, keys = challenged()
    response, _ = exchange(peer, ("CHAP_N", name), proof(keys), flags=LEAVE)
    assert_refused(response, peer)


@pytest.mark.parametrize("value", ["0x00", "0x", "", "deadbeef", "0x" + "00" * 2000, "0bAA=A"])
def test_12_1_3_a_wrong_proof(value: str) -> None:
    peer, _ = challenged()
    response, _ = exchange(peer, ("CHAP_N", "host"), ("CHAP_R", value), flags=LEAVE)
    assert_refused(response, peer)


def test_12_1_3_steps_out_of_order() -> None:
    peer = RawPeer(Target(POLICY))
    exchange(peer, *names(), ("AuthMethod", "CHAP"))
    response, _ = exchange(peer, ("CHAP_N", "host"), ("CHAP_R", "0x00"))
    assert_refused(response, peer)


def test_12_1_3_chap_without_method() -> None:
    peer = RawPeer(Target(POLICY))
    response, _ = exchange(peer, *names(), ("CHAP_A", "5"))
    assert_refused(response, peer)


def test_12_1_3_mutual() -> None:
    peer, keys = challenged("7")
    ours = ("CHAP_I", "9"), ("CHAP_C", "0x" + "ab" * 32)
    response, keys = exchange(peer, ("CHAP_N", "host"), proof(keys), *ours, flags=LEAVE)
    assert response.flags == LEAVE
    assert keys["CHAP_N"] == "disk"
    expected = chap_response("7", 9, OTHER_SECRET, b"\xab" * 32)
    assert parse_binary(keys["CHAP_R"]) == expected


def test_12_1_3_mutual_that_is_not_configured() -> None:
    peer, keys = challenged(policy=Policy(credentials=Credentials("host", SECRET)))
    ours = ("CHAP_I", "9"), ("CHAP_C", "0x" + "ab" * 16)
    response, _ = exchange(peer, ("CHAP_N", "host"), proof(keys), *ours, flags=LEAVE)
    assert_refused(response, peer)


def test_9_2_1_a_reflected_challenge() -> None:
    peer, keys = challenged()
    ours = ("CHAP_I", keys["CHAP_I"]), ("CHAP_C", keys["CHAP_C"])
    response, _ = exchange(peer, ("CHAP_N", "host"), proof(keys), *ours, flags=LEAVE)
    assert_refused(response, peer)


def test_9_2_1_challenges_differ() -> None:
    asked = []

    def random_bytes(length: int) -> bytes:
        asked.append(length)
        return bytes([len(asked)]) * length

    seen = set()
    for _ in range(2):
        authenticator = ChapAuthenticator(Credentials("host", SECRET), random_bytes)
        seen.add(dict(authenticator.receive({"CHAP_A": "7"}))["CHAP_C"])
    assert len(seen) == 2
    assert sorted(asked) == [1, 1, 32, 32], "an identifier and a challenge of hash length each"


def test_12_discovery_has_credentials_of_its_own() -> None:
    policy = Policy(discovery_credentials=Credentials("finder", SECRET))
    peer = RawPeer(Target(policy))
    response, keys = exchange(peer, *DISCOVERY_NAMES, ("AuthMethod", "CHAP"))
    assert keys["AuthMethod"] == "CHAP"
    _, keys = exchange(peer, ("CHAP_A", "5"))
    response, _ = exchange(peer, ("CHAP_N", "finder"), proof(keys), flags=LEAVE)
    assert response.flags == LEAVE


def test_12_authentication_happens_once() -> None:
    peer, keys = challenged()
    exchange(peer, ("CHAP_N", "host"), proof(keys))
    response, _ = exchange(peer, ("AuthMethod", "CHAP"))
    assert response.status != 0
