"""CHAP, as iSCSI carries it (RFC 7143 section 12.1.3, RFC 1994), seen from the target.

The exchange is a table of steps; secrets come in as arguments and go out in no message, error or
representation. The random source is an argument.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import ClassVar

from .constants import LoginStatus
from .text import ProtocolError, format_binary, parse_binary, parse_number

ALGORITHMS = {"5": "md5", "6": "sha1", "7": "sha256", "8": "sha3_256"}  # IANA PPP algorithms


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who must log in, and, for mutual CHAP, who we are in return."""

    name: str
    secret: bytes = field(repr=False)
    mutual_name: str | None = None
    mutual_secret: bytes | None = field(default=None, repr=False)
    algorithms: tuple[str, ...] = ("8", "7", "6", "5")


class AuthenticationFailure(ProtocolError):
    """Login status 0201h. The message says which step failed and holds nothing secret."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=LoginStatus.AUTHENTICATION_FAILURE)


class Step(Enum):
    """What the target waits for."""

    ALGORITHM = auto()
    RESPONSE = auto()
    DONE = auto()


def chap_response(algorithm: str, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """Hash over identifier, secret and challenge (RFC 1994 section 4.1)."""
    message = bytes([identifier]) + secret + challenge
    return hashlib.new(ALGORITHMS[algorithm], message, usedforsecurity=False).digest()


class ChapAuthenticator:
    """One login's CHAP exchange on the target's side."""

    def __init__(self, credentials: Credentials, random_bytes: Callable[[int], bytes]) -> None:
        self._credentials = credentials
        self._random_bytes = random_bytes
        self._step = Step.ALGORITHM
        self._algorithm = ""
        self._identifier = 0
        self._challenge = b""

    @property
    def done(self) -> bool:
        """Whether the initiator has proved that it knows the secret."""
        return self._step is Step.DONE

    def receive(self, pairs: dict[str, str]) -> list[tuple[str, str]]:
        """The answer to one request's CHAP keys. Raises AuthenticationFailure."""
        required, advance = self._STEPS[self._step]
        if missing := required - pairs.keys():
            raise AuthenticationFailure(f"{', '.join(sorted(missing))} is missing")
        return advance(self, pairs)

    def _choose_algorithm(self, pairs: dict[str, str]) -> list[tuple[str, str]]:
        offered = pairs["CHAP_A"].split(",")
        common = [name for name in offered if name in self._credentials.algorithms]
        if not common:
            raise AuthenticationFailure("no common CHAP algorithm")
        self._algorithm = common[0]
        self._identifier = self._random_bytes(1)[0]
        self._challenge = self._random_bytes(_digest_length(self._algorithm))
        self._step = Step.RESPONSE
        return [
            ("CHAP_A", self._algorithm),
            ("CHAP_I", str(self._identifier)),
            ("CHAP_C", format_binary(self._challenge)),
        ]

    def _check_response(self, pairs: dict[str, str]) -> list[tuple[str, str]]:
        expected = chap_response(
            self._algorithm, self._identifier, self._credentials.secret, self._challenge
        )
        name_matches = hmac.compare_digest(
            pairs["CHAP_N"].encode(), self._credentials.name.encode()
        )
        response_matches = hmac.compare_digest(
            _binary(pairs, "CHAP_R", _digest_length(self._algorithm)), expected
        )
        if not (name_matches and response_matches):
            raise AuthenticationFailure("wrong CHAP name or secret")
        answer = self._prove_ourselves(pairs)
        self._step = Step.DONE
        return answer

    def _prove_ourselves(self, pairs: dict[str, str]) -> list[tuple[str, str]]:
        """Answer the initiator's own challenge, if it sent one (mutual CHAP)."""
        if not {"CHAP_I", "CHAP_C"} & pairs.keys():
            return []
        credentials = self._credentials
        if credentials.mutual_name is None or credentials.mutual_secret is None:
            raise AuthenticationFailure("mutual CHAP was asked for and is not configured")
        challenge = _binary(pairs, "CHAP_C")
        if hmac.compare_digest(challenge, self._challenge):
            raise AuthenticationFailure("our own CHAP challenge was reflected")
        try:
            identifier = parse_number(pairs.get("CHAP_I", ""), 0, 255)
        except ValueError as error:
            raise AuthenticationFailure(f"CHAP_I: {error}") from None
        response = chap_response(self._algorithm, identifier, credentials.mutual_secret, challenge)
        return [("CHAP_N", credentials.mutual_name), ("CHAP_R", format_binary(response))]

    def _nothing_more(self, pairs: dict[str, str]) -> list[tuple[str, str]]:
        raise AuthenticationFailure("CHAP keys after the exchange was over")

    _STEPS: ClassVar = {
        Step.ALGORITHM: (frozenset({"CHAP_A"}), _choose_algorithm),
        Step.RESPONSE: (frozenset({"CHAP_N", "CHAP_R"}), _check_response),
        Step.DONE: (frozenset[str](), _nothing_more),
    }


def _digest_length(algorithm: str) -> int:
    return hashlib.new(ALGORITHMS[algorithm], usedforsecurity=False).digest_size


def _binary(pairs: dict[str, str], name: str, length: int | None = None) -> bytes:
    try:
        value = parse_binary(pairs.get(name, ""))
    except ValueError as error:
        raise AuthenticationFailure(f"{name}: {error}") from None
    if length is not None and len(value) != length:
        raise AuthenticationFailure(f"{name}: wrong length")
    return value
