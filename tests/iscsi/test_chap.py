"""CHAP from the target's side, against digests computed here by RFC 1994's formula."""

import base64
import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from pyiscsi_target.iscsi.chap import (
    ALGORITHMS,
    AuthenticationFailure,
    ChapAuthenticator,
    Credentials,
    chap_response,
)
from pyiscsi_target.iscsi.constants import LoginStatus
from pyiscsi_target.iscsi.text import format_binary, parse_binary
from tests.support.memory import Randomness

SECRET = b"the initiator's secret"
MUTUAL_SECRET = b"the target's own secret"
ONE_WAY = Credentials("host", SECRET)
MUTUAL = Credentials("host", SECRET, "disk", MUTUAL_SECRET)

# Section 12.1.3 and the IANA registry of PPP authentication algorithms.
HASHES: dict[str, Callable[[bytes], Any]] = {
    "5": hashlib.md5,
    "6": hashlib.sha1,
    "7": hashlib.sha256,
    "8": hashlib.sha3_256,
}
ALGORITHM = pytest.mark.parametrize("algorithm", sorted(HASHES))


def base64_of(value: bytes) -> str:
    return "0b" + base64.b64encode(value).decode()


NOTATION = pytest.mark.parametrize("encode", [format_binary, base64_of])


class Exchange:
    """An authenticator that has sent its challenge, and the initiator's arithmetic."""

    def __init__(self, credentials: Credentials = ONE_WAY, algorithm: str = "7") -> None:
        self.algorithm = algorithm
        self.authenticator = ChapAuthenticator(credentials, Randomness())
        self.sent = dict(self.authenticator.receive({"CHAP_A": algorithm}))
        self.identifier = int(self.sent["CHAP_I"])
        self.challenge = parse_binary(self.sent["CHAP_C"])

    def proof(self, secret: bytes = SECRET) -> bytes:
        message = bytes([self.identifier]) + secret + self.challenge
        return bytes(HASHES[self.algorithm](message).digest())

    def answer(self, **keys: str) -> dict[str, str]:
        """What the target sends for a right answer, changed and extended by `keys`."""
        pairs = {"CHAP_N": "host", "CHAP_R": format_binary(self.proof()), **keys}
        return dict(self.authenticator.receive(pairs))

    def refused(self, **keys: str) -> str:
        """The reason for which such an answer ends the login."""
        with pytest.raises(AuthenticationFailure) as caught:
            self.answer(**keys)
        assert caught.value.status == LoginStatus.AUTHENTICATION_FAILURE
        assert not self.authenticator.done
        return str(caught.value)


@ALGORITHM
class TestEveryAlgorithm:
    def test_the_response_is_the_hash_of_rfc_1994(self, algorithm: str) -> None:
        expected = HASHES[algorithm](b"\x07secretchallenge").digest()
        assert chap_response(algorithm, 7, b"secret", b"challenge") == expected

    @NOTATION
    def test_the_right_answer(self, algorithm: str, encode: Callable[[bytes], str]) -> None:
        exchange = Exchange(algorithm=algorithm)
        assert exchange.sent["CHAP_A"] == algorithm
        assert not exchange.authenticator.done
        assert exchange.answer(CHAP_R=encode(exchange.proof())) == {}
        assert exchange.authenticator.done

    def test_a_wrong_secret(self, algorithm: str) -> None:
        exchange = Exchange(algorithm=algorithm)
        exchange.refused(CHAP_R=format_binary(exchange.proof(b"another secret")))

    @pytest.mark.parametrize("change", [-1, 1])
    def test_a_wrong_length(self, algorithm: str, change: int) -> None:
        exchange = Exchange(algorithm=algorithm)
        proof = (exchange.proof() + b"\0")[: len(exchange.proof()) + change]
        assert exchange.refused(CHAP_R=format_binary(proof)) == "CHAP_R: wrong length"

    @NOTATION
    def test_mutual(self, algorithm: str, encode: Callable[[bytes], str]) -> None:
        exchange = Exchange(MUTUAL, algorithm)
        challenge = b"what the initiator asks"
        answer = exchange.answer(CHAP_I="200", CHAP_C=encode(challenge))
        assert answer["CHAP_N"] == "disk"
        proof = HASHES[algorithm](b"\xc8" + MUTUAL_SECRET + challenge).digest()
        assert parse_binary(answer["CHAP_R"]) == proof

    def test_the_challenge_is_as_long_as_the_hash(self, algorithm: str) -> None:
        exchange = Exchange(algorithm=algorithm)
        assert len(exchange.challenge) == HASHES[algorithm](b"").digest_size


class TestAlgorithmChoice:
    @pytest.mark.parametrize(
        ("offer", "choice"),
        [*[(",".join(offer), offer[0]) for offer in itertools.permutations("5678")]],
    )
    def test_the_initiators_order_decides(self, offer: str, choice: str) -> None:
        authenticator = ChapAuthenticator(ONE_WAY, Randomness())
        assert dict(authenticator.receive({"CHAP_A": offer}))["CHAP_A"] == choice

    def test_what_is_unknown_is_passed_over(self) -> None:
        authenticator = ChapAuthenticator(ONE_WAY, Randomness())
        assert dict(authenticator.receive({"CHAP_A": "4,99,6,5"}))["CHAP_A"] == "6"

    def test_what_is_not_allowed_is_passed_over(self) -> None:
        credentials = Credentials("host", SECRET, algorithms=("7",))
        authenticator = ChapAuthenticator(credentials, Randomness())
        assert dict(authenticator.receive({"CHAP_A": "5,7"}))["CHAP_A"] == "7"

    @pytest.mark.parametrize("offer", ["", "4", "55", "5 ", "0x5", "md5", ","])
    def test_nothing_in_common(self, offer: str) -> None:
        authenticator = ChapAuthenticator(ONE_WAY, Randomness())
        with pytest.raises(AuthenticationFailure, match="no common"):
            authenticator.receive({"CHAP_A": offer})


class TestAnswer:
    @pytest.mark.parametrize("name", ["", "Host", "host ", "other", "hóst"])
    def test_a_wrong_name(self, name: str) -> None:
        assert Exchange().refused(CHAP_N=name) == "wrong CHAP name or secret"

    def test_a_wrong_name_and_a_wrong_secret_read_alike(self) -> None:
        wrong_secret = Exchange().refused(CHAP_R="0x" + "00" * 32)
        assert Exchange().refused(CHAP_N="other") == wrong_secret

    @pytest.mark.parametrize("value", ["", "12", "0x", "0b", "0xzz", "0b!", "0x" + "0" * 5000])
    def test_a_response_that_is_no_binary_value(self, value: str) -> None:
        assert Exchange().refused(CHAP_R=value).startswith("CHAP_R: ")

    def test_each_challenge_is_new(self) -> None:
        random_bytes = Randomness()
        challenges = {
            dict(ChapAuthenticator(ONE_WAY, random_bytes).receive({"CHAP_A": "7"}))["CHAP_C"]
            for _ in range(5)
        }
        assert len(challenges) == 5

    def test_a_response_to_another_challenge(self) -> None:
        random_bytes = Randomness()
        first, second = (ChapAuthenticator(ONE_WAY, random_bytes) for _ in range(2))
        asked = dict(first.receive({"CHAP_A": "7"}))
        second.receive({"CHAP_A": "7"})
        proof = chap_response("7", int(asked["CHAP_I"]), SECRET, parse_binary(asked["CHAP_C"]))
        with pytest.raises(AuthenticationFailure):
            second.receive({"CHAP_N": "host", "CHAP_R": format_binary(proof)})


class TestMutual:
    def test_it_is_the_initiators_choice(self) -> None:
        assert Exchange(MUTUAL).answer() == {}

    def test_not_configured(self) -> None:
        reason = Exchange().refused(CHAP_I="1", CHAP_C="0x0102")
        assert reason == "mutual CHAP was asked for and is not configured"

    @NOTATION
    def test_our_own_challenge_reflected(self, encode: Callable[[bytes], str]) -> None:
        exchange = Exchange(MUTUAL)
        reason = exchange.refused(CHAP_I="1", CHAP_C=encode(exchange.challenge))
        assert "reflected" in reason

    @pytest.mark.parametrize("identifier", ["", "256", "-1", "x", "0x100"])
    def test_an_identifier_that_is_no_byte(self, identifier: str) -> None:
        reason = Exchange(MUTUAL).refused(CHAP_I=identifier, CHAP_C="0x0102")
        assert reason.startswith("CHAP_I: ")

    @pytest.mark.parametrize("challenge", ["", "0x", "0b", "12", "0x" + "00" * 1025])
    def test_a_challenge_that_is_no_binary_value(self, challenge: str) -> None:
        reason = Exchange(MUTUAL).refused(CHAP_I="1", CHAP_C=challenge)
        assert reason.startswith("CHAP_C: ")

    @pytest.mark.parametrize("half", [{"CHAP_I": "1"}, {"CHAP_C": "0x0102"}])
    def test_half_a_challenge(self, half: dict[str, str]) -> None:
        Exchange(MUTUAL).refused(**half)

    def test_nothing_is_proved_to_one_who_did_not_prove_himself(self) -> None:
        exchange = Exchange(MUTUAL)
        exchange.refused(CHAP_R="0x" + "00" * 32, CHAP_I="1", CHAP_C="0x0102")


class TestOrder:
    @pytest.mark.parametrize(
        "keys",
        [
            {"CHAP_N": "host", "CHAP_R": "0x00"},
            {"CHAP_I": "1", "CHAP_C": "0x0102"},
            {"CHAP_N": "host"},
        ],
    )
    def test_an_answer_before_the_challenge(self, keys: dict[str, str]) -> None:
        authenticator = ChapAuthenticator(ONE_WAY, Randomness())
        with pytest.raises(AuthenticationFailure, match="CHAP_A is missing"):
            authenticator.receive(keys)

    @pytest.mark.parametrize("missing", ["CHAP_N", "CHAP_R"])
    def test_half_an_answer(self, missing: str) -> None:
        exchange = Exchange()
        keys = {"CHAP_N": "host", "CHAP_R": format_binary(exchange.proof())}
        del keys[missing]
        with pytest.raises(AuthenticationFailure, match=f"{missing} is missing"):
            exchange.authenticator.receive(keys)

    def test_anything_after_the_end(self) -> None:
        exchange = Exchange()
        exchange.answer()
        with pytest.raises(AuthenticationFailure):
            exchange.answer()


class TestSecrecy:
    """No secret, whole or encoded, in what may reach a log (FACTS of other targets' advisories)."""

    SHOWN = (str, repr)

    @staticmethod
    def hides(text: str) -> bool:
        leaks = [
            form
            for secret in (SECRET, MUTUAL_SECRET)
            for form in (secret.decode(), secret.hex(), base64.b64encode(secret).decode())
        ]
        return not any(leak in text for leak in leaks)

    @pytest.mark.parametrize("show", SHOWN)
    def test_credentials_and_authenticator(self, show: Callable[[object], str]) -> None:
        exchange = Exchange(MUTUAL)
        exchange.answer(CHAP_I="1", CHAP_C="0x0102")
        assert self.hides(show(MUTUAL))
        assert self.hides(show(exchange.authenticator))
        assert "host" in show(MUTUAL)

    @pytest.mark.parametrize(
        "keys",
        [
            {"CHAP_N": "other"},
            {"CHAP_R": "0x00"},
            {"CHAP_R": "nothing"},
            {"CHAP_I": "x", "CHAP_C": "0x01"},
            {"CHAP_I": "1", "CHAP_C": "zz"},
        ],
    )
    def test_failures(self, keys: dict[str, str]) -> None:
        assert self.hides(Exchange(MUTUAL).refused(**keys))

    def test_what_is_sent(self) -> None:
        exchange = Exchange(MUTUAL)
        answer = exchange.answer(CHAP_I="1", CHAP_C="0x0102")
        assert self.hides(repr(exchange.sent))
        assert self.hides(repr(answer))


def test_the_algorithms_are_those_of_the_registry() -> None:
    assert set(ALGORITHMS) == set(HASHES)
