"""The initiator's side of the login phase (RFC 7143 sections 6.3 and 11.12), CHAP included.

One `InitiatorLogin` a connection: a response's header and text in, the next request's flags and
text out, until the full feature phase is reached or the login is refused. It offers by the same key
table that the target answers by. Knows no numbering and no buffers.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field

from .chap import AuthenticationFailure, Credentials, chap_response
from .constants import CONTINUE, TRANSIT, Stage
from .keys import (
    CRC32C,
    KEYS,
    NONE,
    RESERVED_ANSWERS,
    Limits,
    Negotiation,
    Parameters,
    Phase,
    Sender,
    format_value,
)
from .login import DISCOVERY, LOGIN_SEGMENT_LENGTH
from .pdu import LoginResponse, stage_flags
from .text import (
    Pairs,
    ProtocolError,
    TextAssembler,
    decode_pairs,
    encode_pairs,
    format_binary,
    parse_binary,
    parse_number,
)

STATUS_CLASS_MASK = 0xFF00


@dataclass(frozen=True, slots=True)
class InitiatorSettings:
    """Who logs in to what, and with which offers. `target_name` None: a discovery session.

    `tsih` non-zero reinstates the connection `cid` of that session (section 6.3.4).
    `security_stage` False begins in the operational stage. `further_keys` are declared besides, in
    the operational stage: InitiatorAlias, X- keys. `strict` False overlooks mistakes that harm
    nobody at error recovery level 0: an ExpDataSN that leaves out the R2Ts, as tgtd counts, and
    answers to commands that task management has ended.
    """

    initiator_name: str
    target_name: str | None = None
    isid: bytes = b"\x80\x00\x00\x00\x00\x00"
    tsih: int = 0
    cid: int = 0
    first_cmd_sn: int = 1
    limits: Limits = field(default_factory=Limits)
    credentials: Credentials | None = None
    security_stage: bool = True
    further_keys: tuple[tuple[str, str], ...] = ()
    strict: bool = True


class LoginRefused(ProtocolError):
    """The target ended the login; `status` is its class and detail (section 11.13.5)."""

    def __init__(self, status: int, target_address: str | None = None) -> None:
        super().__init__(f"login refused with status {status:04x}h")
        self.status_code = status
        self.target_address = target_address


class ChapInitiator:
    """One login's CHAP exchange on the initiator's side (section 12.1.3)."""

    def __init__(self, credentials: Credentials, random_bytes: Callable[[int], bytes]) -> None:
        self._credentials = credentials
        self._random_bytes = random_bytes
        self._algorithm = ""
        self._identifier = 0
        self._challenge = b""
        self.answered = False

    def begin(self) -> Pairs:
        return [("CHAP_A", ",".join(self._credentials.algorithms))]

    def respond(self, keys: dict[str, str]) -> Pairs:
        """The proof that the target's challenge asks for, and our challenge if mutual."""
        if not {"CHAP_A", "CHAP_I", "CHAP_C"} <= keys.keys() or self.answered:
            raise AuthenticationFailure("CHAP_A, CHAP_I and CHAP_C were expected")
        self._algorithm = keys["CHAP_A"]
        if self._algorithm not in self._credentials.algorithms:
            raise AuthenticationFailure("a CHAP algorithm that was not offered")
        challenge = parse_binary(keys["CHAP_C"])
        identifier = parse_number(keys["CHAP_I"], 0, 255)
        self.answered = True
        secret = self._credentials.secret
        response = chap_response(self._algorithm, identifier, secret, challenge)
        pairs = [("CHAP_N", self._credentials.name), ("CHAP_R", format_binary(response))]
        return pairs + self._own_challenge(challenge)

    def _own_challenge(self, theirs: bytes) -> Pairs:
        if self._credentials.mutual_secret is None:
            return []
        self._identifier = self._random_bytes(1)[0]
        self._challenge = self._random_bytes(len(theirs))
        return [("CHAP_I", str(self._identifier)), ("CHAP_C", format_binary(self._challenge))]

    def verify(self, keys: dict[str, str]) -> None:
        """Check the target's own proof; nothing to do unless mutual."""
        secret = self._credentials.mutual_secret
        if secret is None:
            return
        expected = chap_response(self._algorithm, self._identifier, secret, self._challenge)
        proof = parse_binary(keys.get("CHAP_R", "0x00"))
        name_matches = keys.get("CHAP_N") == self._credentials.mutual_name
        if not (hmac.compare_digest(proof, expected) and name_matches):
            raise AuthenticationFailure("the target did not prove who it is")


class InitiatorLogin:
    """One connection's login. `parameters` holds what was agreed once `done`."""

    def __init__(self, settings: InitiatorSettings, random_bytes: Callable[[int], bytes]) -> None:
        self._settings = settings
        self._offers = settings.limits.offers()
        self.parameters = Parameters(max_recv_data_segment_length=LOGIN_SEGMENT_LENGTH)
        self._negotiation = Negotiation(
            self._offers, self.parameters, Sender.INITIATOR, settings.target_name is None
        )
        self._chap = (
            ChapInitiator(settings.credentials, random_bytes) if settings.credentials else None
        )
        self.stage = Stage.SECURITY if settings.security_stage else Stage.OPERATIONAL
        self.done = False
        self._target_verified = False
        self._offered: set[str] = set()
        self._text = TextAssembler()
        self._unsent = b""
        self._last_flags = 0
        self._final_flags = 0  # of a request whose C bit was set: those of its last part

    @property
    def declared(self) -> dict[str, str]:
        """What the target declared: TargetAlias, TargetPortalGroupTag and the like."""
        return {name: format_value(value) for name, value in self._negotiation.declared.items()}

    def begin(self) -> tuple[int, bytes]:
        """Flags and data of the first request."""
        settings = self._settings
        pairs = [("InitiatorName", settings.initiator_name)]
        if settings.target_name is None:
            pairs.append(("SessionType", DISCOVERY))
        else:
            pairs += [("SessionType", "Normal"), ("TargetName", settings.target_name)]
        if self.stage is Stage.OPERATIONAL:
            return self._request(pairs + self._operational_offers(), Stage.FULL_FEATURE)
        if self._chap is not None:
            return self._request([*pairs, ("AuthMethod", "CHAP")], None)
        return self._request([*pairs, ("AuthMethod", NONE)], Stage.OPERATIONAL)

    def receive(self, response: LoginResponse, data: bytes) -> tuple[int, bytes] | None:
        """Flags and data of the next request, or None once the full feature phase is reached.

        Raises LoginRefused, or ProtocolError for an answer that section 6 does not allow.
        """
        if response.status & STATUS_CLASS_MASK:
            address = dict(decode_pairs(data)).get("TargetAddress") if data else None
            raise LoginRefused(response.status, address)
        self._check_flags(response.flags)
        if self._unsent:
            return self._next_part(data)
        whole = self._text.add(data, more=bool(response.flags & CONTINUE))
        if whole is None:
            return self._last_flags, b""
        return self._advance(response.flags, decode_pairs(whole))

    def _check_flags(self, flags: int) -> None:
        if flags >> 2 & 3 != self.stage:
            raise ProtocolError("CSG is not the stage of the request")
        if not flags & TRANSIT:
            return
        if flags & CONTINUE or not self._last_flags & TRANSIT:
            raise ProtocolError("T was not asked for, or stands beside C")
        if flags & 3 != self._last_flags & 3:
            raise ProtocolError("NSG is not the stage that was asked for")

    def _advance(self, flags: int, pairs: Pairs) -> tuple[int, bytes] | None:
        answers = self._take(pairs)
        following = Stage(flags & 3) if flags & TRANSIT else None
        if following is Stage.FULL_FEATURE:
            self._finish()
            return None
        if following is Stage.OPERATIONAL:
            self.stage = following
            return self._request(self._operational_offers(), Stage.FULL_FEATURE)
        if self.stage is Stage.SECURITY:
            return self._request(answers, Stage.OPERATIONAL if self._may_leave_security() else None)
        return self._request(answers, Stage.FULL_FEATURE)

    def _may_leave_security(self) -> bool:
        return self._chap is None or self._chap.answered

    def _take(self, pairs: Pairs) -> Pairs:
        """Record the target's answers and declarations; what it offers itself is answered."""
        chap_keys = {name: value for name, value in pairs if name.startswith("CHAP_")}
        answers: Pairs = []
        others: Pairs = []
        for name, value in pairs:
            if name == "AuthMethod":
                answers += self._take_method(value)
            elif name in self._offered:
                self._settle(name, value)
            elif name not in chap_keys and value not in RESERVED_ANSWERS:
                others.append((name, value))
        if self._chap is not None and chap_keys:
            answers += self._take_chap(self._chap, chap_keys)
        phase = Phase.SECURITY if self.stage is Stage.SECURITY else Phase.OPERATIONAL
        return answers + self._negotiation.answer(others, phase)

    def _take_method(self, method: str) -> Pairs:
        wanted = NONE if self._chap is None else "CHAP"
        if method != wanted:
            raise AuthenticationFailure(f"AuthMethod={method[:32]} in answer to {wanted}")
        return [] if self._chap is None else self._chap.begin()

    def _take_chap(self, chap: ChapInitiator, keys: dict[str, str]) -> Pairs:
        try:
            if not chap.answered:
                return chap.respond(keys)
            chap.verify(keys)
        except ValueError as error:
            raise AuthenticationFailure(f"CHAP: {error}") from None
        self._target_verified = True
        return []

    def _settle(self, name: str, text: str) -> None:
        """An answer must be a result that our offer can have (section 6.2.1, 6.2.2)."""
        key = KEYS[name]
        self._offered.remove(name)
        if text in RESERVED_ANSWERS:
            return  # the default holds
        try:
            value = key.parse(text)
        except ValueError as error:
            raise ProtocolError(f"{name}: {error}") from None
        assert key.result is not None
        if key.result(self._offers[name], value) != value:
            raise ProtocolError(f"{name}={text} is no result of {self._offers[name]}")
        self.parameters.settle(name, value)

    def _operational_offers(self) -> Pairs:
        discovery = self._settings.target_name is None
        limit = self._settings.limits.max_recv_data_segment_length
        names = [n for n in self._offers if not (discovery and KEYS[n].normal_session_only)]
        self._offered.update(names)
        pairs = [(name, format_value(self._offers[name])) for name in names]
        return [*pairs, ("MaxRecvDataSegmentLength", str(limit)), *self._settings.further_keys]

    def _request(self, pairs: Pairs, following: Stage | None) -> tuple[int, bytes]:
        flags = self.stage << 2
        if following is not None:
            flags = TRANSIT | stage_flags(self.stage, following)
        self._final_flags = flags
        self._unsent = encode_pairs(pairs)
        return self._next_part(b"")

    def _next_part(self, answer: bytes) -> tuple[int, bytes]:
        """As much of a request as one PDU may carry before lengths are negotiated (13.12)."""
        if answer:
            raise ProtocolError("the target answered a request that had the C bit set")
        part = self._unsent[:LOGIN_SEGMENT_LENGTH]
        self._unsent = self._unsent[LOGIN_SEGMENT_LENGTH:]
        self._last_flags = CONTINUE | self.stage << 2 if self._unsent else self._final_flags
        return self._last_flags, part

    def _finish(self) -> None:
        credentials = self._settings.credentials
        if credentials and credentials.mutual_secret is not None and not self._target_verified:
            raise AuthenticationFailure("the target did not prove who it is")
        limits = self._settings.limits
        for name, agreed in (
            (limits.header_digest, self.parameters.header_digest),
            (limits.data_digest, self.parameters.data_digest),
        ):
            if not agreed and name == CRC32C:
                raise ProtocolError("a digest is required and the target refused it")
        self.parameters.max_recv_data_segment_length = limits.max_recv_data_segment_length
        self.stage = Stage.FULL_FEATURE
        self.done = True
