"""The target's side of the login phase (RFC 7143 section 6.3 and 11.12).

One `TargetLogin` a connection: a request's header and text in, a `Reply` out, until it is refused
(`LoginError`) or agreed. Which targets exist and who may reach them is asked of a `LoginPolicy`.
Knows no sockets and no sessions: the server decides on sessions between `agreed` and `accept`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from .chap import ChapAuthenticator, Credentials
from .constants import (
    CONTINUE,
    PROTOCOL_VERSION,
    TRANSIT,
    LoginStatus,
    Stage,
)
from .keys import KEYS, Limits, Negotiation, Parameters, Phase, Sender
from .pdu import LoginRequest
from .text import Pairs, ProtocolError, TextAssembler, decode_pairs, encode_pairs

LOGIN_SEGMENT_LENGTH = 8192  # bytes: MaxRecvDataSegmentLength until it is declared (13.12)
NAME_LENGTH = 223  # bytes of an iSCSI name (section 4.2.7.1)

# Which stage may follow which (section 6.3: "the stages of login").
TRANSITIONS: dict[Stage, frozenset[Stage]] = {
    Stage.SECURITY: frozenset({Stage.OPERATIONAL, Stage.FULL_FEATURE}),
    Stage.OPERATIONAL: frozenset({Stage.FULL_FEATURE}),
}
PHASE_OF = {Stage.SECURITY: Phase.SECURITY, Stage.OPERATIONAL: Phase.OPERATIONAL}
AUTHENTICATION_KEYS = frozenset({"CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R"})
FIRST_KEYS = frozenset({"InitiatorName", "TargetName", "SessionType"})
DISCOVERY = "Discovery"


class LoginError(ProtocolError):
    """A login that ends here, with the status that tells why (section 11.13.5)."""

    def __init__(self, status: LoginStatus, message: str) -> None:
        super().__init__(message, status=status)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms an initiator may use a target (or discovery: `name` None)."""

    name: str | None
    limits: Limits
    portal_group_tag: int = 1
    alias: str | None = None
    queue_depth: int = 16
    credentials: Credentials | None = None


class LoginPolicy(Protocol):
    """What the login phase asks about the world. Every method may raise LoginError."""

    def discovery_terms(self, initiator_name: str) -> Terms:
        """The terms of a discovery session."""
        ...

    def target_terms(self, initiator_name: str, target_name: str) -> Terms:
        """The terms of a normal session."""
        ...

    def send_targets(
        self, initiator_name: str, target_name: str | None
    ) -> list[tuple[str, list[str]]]:
        """(target name, [portal address with group tag]) of what the initiator may see.

        `target_name` None means all of them.
        """
        ...


@dataclass(slots=True)
class Agreement:
    """What a login came to: all that the server needs to open a session."""

    initiator_name: str
    isid: bytes
    tsih: int
    cid: int
    terms: Terms
    parameters: Parameters
    initiator_alias: str = ""

    @property
    def discovery(self) -> bool:
        return self.terms.name is None

    @property
    def initiator_port_name(self) -> str:
        """The SCSI initiator port name (section 4.4.3), the same for every session of a nexus."""
        return f"{self.initiator_name},i,0x{self.isid.hex()}"


@dataclass(slots=True)
class Reply:
    """One Login Response to send: `agreed` marks the last, which waits for the server's word."""

    flags: int
    data: bytes = b""
    agreed: bool = False


@dataclass(slots=True)
class TargetLogin:
    """One connection's login, from the first request to the agreement."""

    policy: LoginPolicy
    random_bytes: Callable[[int], bytes]
    stage: Stage = Stage.SECURITY
    agreement: Agreement | None = None
    initiator_name: str = ""
    _first: LoginRequest | None = None
    _text: TextAssembler = field(default_factory=TextAssembler)
    _unsent: bytes = b""
    _last_flags: int = 0
    _terms: Terms | None = None
    _negotiation: Negotiation | None = None
    _chap: ChapAuthenticator | None = None
    _authenticated: bool = False
    _unannounced: Pairs = field(default_factory=list)

    def receive(self, request: LoginRequest, data: bytes) -> Reply:
        """The reply to one request. Raises ProtocolError, whose status is the answer."""
        self._check_header(request)
        if self._unsent:
            self._last_flags &= request.flags | ~TRANSIT
            return self._continue_reply(data)
        more = bool(request.flags & CONTINUE)
        if more and request.flags & TRANSIT:
            raise LoginError(LoginStatus.INITIATOR_ERROR, "T and C are both set")
        whole = self._text.add(data, more=more)
        if whole is None:
            return Reply(self.stage << 2)
        return self._answer(request, decode_pairs(whole))

    def _check_header(self, request: LoginRequest) -> None:
        first = self._first
        current = request.flags >> 2 & 3
        if first is None:
            self._begin(request, current)
            return
        if (request.isid, request.tsih, request.itt, request.cid) != (
            first.isid,
            first.tsih,
            first.itt,
            first.cid,
        ):
            raise LoginError(LoginStatus.INITIATOR_ERROR, "ISID, TSIH, ITT or CID changed")
        if current != self.stage:
            raise LoginError(LoginStatus.INITIATOR_ERROR, "CSG is not the stage that login is in")

    def _begin(self, request: LoginRequest, current: int) -> None:
        if not request.version_min <= PROTOCOL_VERSION <= request.version_max:
            raise LoginError(LoginStatus.UNSUPPORTED_VERSION, "no common protocol version")
        if current not in (Stage.SECURITY, Stage.OPERATIONAL):
            raise LoginError(LoginStatus.INITIATOR_ERROR, "login begins in a stage that is none")
        self._first = request
        self.stage = Stage(current)

    def _answer(self, request: LoginRequest, pairs: Pairs) -> Reply:
        answers: Pairs = []
        if self._terms is None:
            self._identify(dict(pairs))
        assert self._negotiation is not None
        if self._negotiation.declared and self._too_late(pairs):
            raise LoginError(LoginStatus.INITIATOR_ERROR, "who asks for what comes first")
        if self.stage is Stage.SECURITY:
            pairs, answers = self._security(pairs)
        elif not self._authenticated:
            self._require_no_authentication()
        answers += self._negotiation.answer(pairs, PHASE_OF[self.stage])
        answers = self._announce(answers)
        self._last_flags = self._transition(request)
        self._unsent = encode_pairs(answers)
        return self._continue_reply(b"")

    def _too_late(self, pairs: Pairs) -> bool:
        """Whether a later request declares what belongs into the first (sections 13.4, 13.21)."""
        assert self._negotiation is not None
        return any(name in FIRST_KEYS - self._negotiation.declared.keys() for name, _ in pairs)

    def _identify(self, pairs: dict[str, str]) -> None:
        """The first request says who asks for what (section 6.3.1)."""
        name = pairs.get("InitiatorName")
        if not name:
            raise LoginError(LoginStatus.MISSING_PARAMETER, "InitiatorName is missing")
        if len(name.encode()) > NAME_LENGTH or not name.isprintable() or {" ", ","} & {*name}:
            raise LoginError(LoginStatus.INITIATOR_ERROR, "InitiatorName is no iSCSI name")
        self.initiator_name = name = name.lower()  # names compare without case, RFC 3722
        session_type = pairs.get("SessionType", "Normal")
        if session_type not in ("Normal", DISCOVERY):
            raise LoginError(
                LoginStatus.SESSION_TYPE_NOT_SUPPORTED, f"SessionType={session_type[:32]}"
            )
        discovery = session_type == DISCOVERY
        if discovery:
            self._terms = self.policy.discovery_terms(name)
        else:
            target = pairs.get("TargetName")
            if not target:
                raise LoginError(LoginStatus.MISSING_PARAMETER, "TargetName is missing")
            self._terms = self.policy.target_terms(name, target.lower())
        limits = self._terms.limits
        parameters = Parameters(max_recv_data_segment_length=LOGIN_SEGMENT_LENGTH)
        self._negotiation = Negotiation(limits.offers(), parameters, Sender.TARGET, discovery)
        if not discovery:
            if self._terms.alias:
                self._unannounced.append(("TargetAlias", self._terms.alias))
            self._unannounced.append(("TargetPortalGroupTag", str(self._terms.portal_group_tag)))

    def _require_no_authentication(self) -> None:
        assert self._terms is not None
        if self._terms.credentials is not None:
            raise LoginError(LoginStatus.AUTHENTICATION_FAILURE, "authentication was skipped")
        self._authenticated = True

    def _security(self, pairs: Pairs) -> tuple[Pairs, Pairs]:
        """Take the authentication keys out of `pairs` and answer them (section 12)."""
        assert self._terms is not None
        rest = [pair for pair in pairs if pair[0] not in AUTHENTICATION_KEYS | {"AuthMethod"}]
        chap_pairs = [pair for pair in pairs if pair[0] in AUTHENTICATION_KEYS]
        keys = dict(chap_pairs)
        if len(keys) != len(chap_pairs):
            raise LoginError(LoginStatus.AUTHENTICATION_FAILURE, "a CHAP key was sent twice")
        answers: Pairs = []
        methods = [value for name, value in pairs if name == "AuthMethod"]
        if methods:
            answers += self._choose_method(methods)
        if keys:
            if self._chap is None:
                raise LoginError(LoginStatus.AUTHENTICATION_FAILURE, "CHAP was not agreed on")
            _check_lengths(keys)
            answers += self._chap.receive(keys)
            self._authenticated = self._chap.done
        return rest, answers

    def _choose_method(self, methods: list[str]) -> Pairs:
        assert self._terms is not None
        if len(methods) > 1 or self._chap is not None or self._authenticated:
            raise LoginError(LoginStatus.INITIATOR_ERROR, "AuthMethod was negotiated before")
        offered = methods[0].split(",")
        credentials = self._terms.credentials
        wanted = "None" if credentials is None else "CHAP"
        if wanted not in offered:
            raise LoginError(LoginStatus.AUTHENTICATION_FAILURE, f"AuthMethod={wanted} not offered")
        if credentials is None:
            self._authenticated = True
        else:
            self._chap = ChapAuthenticator(credentials, self.random_bytes)
        return [("AuthMethod", wanted)]

    def _announce(self, answers: Pairs) -> Pairs:
        """Add what the target declares: its names at once, its segment length when allowed."""
        announced = answers + self._unannounced
        self._unannounced = []
        assert self._terms is not None
        assert self._negotiation is not None
        parameters = self._negotiation.parameters
        limit = self._terms.limits.max_recv_data_segment_length
        if self.stage is Stage.OPERATIONAL and parameters.max_recv_data_segment_length != limit:
            parameters.max_recv_data_segment_length = limit
            announced.append(("MaxRecvDataSegmentLength", str(limit)))
        return announced

    def _transition(self, request: LoginRequest) -> int:
        """The flags of the reply: whether we go along with the T bit (section 6.3.2)."""
        stay = self.stage << 2
        if not request.flags & TRANSIT:
            return stay
        following = request.flags & 3
        if following not in TRANSITIONS[self.stage]:
            raise LoginError(LoginStatus.INITIATOR_ERROR, "NSG cannot follow CSG")
        if self.stage is Stage.SECURITY and not self._authenticated:
            if self._chap is not None:
                return stay
            self._require_no_authentication()
        return TRANSIT | stay | following

    def _continue_reply(self, data: bytes) -> Reply:
        """The reply, or as much of it as the initiator's segment length allows (C bit)."""
        if data:
            raise LoginError(LoginStatus.INITIATOR_ERROR, "keys while our answer is unfinished")
        assert self._negotiation is not None
        length = min(
            LOGIN_SEGMENT_LENGTH, self._negotiation.parameters.max_send_data_segment_length
        )
        chunk, self._unsent = self._unsent[:length], self._unsent[length:]
        if self._unsent:
            return Reply(CONTINUE | self.stage << 2, chunk)
        if not self._last_flags & TRANSIT:
            return Reply(self.stage << 2, chunk)
        self.stage = Stage(self._last_flags & 3)
        if self.stage is not Stage.FULL_FEATURE:
            return Reply(self._last_flags, chunk)
        return Reply(self._last_flags, chunk, agreed=self._agree())

    def _agree(self) -> bool:
        assert self._negotiation is not None
        assert self._terms is not None
        assert self._first is not None
        self._negotiation.finish()
        self.agreement = Agreement(
            initiator_name=self.initiator_name,
            isid=self._first.isid,
            tsih=self._first.tsih,
            cid=self._first.cid,
            terms=self._terms,
            parameters=self._negotiation.parameters,
            initiator_alias=str(self._negotiation.declared.get("InitiatorAlias", "")),
        )
        return True


def _check_lengths(keys: dict[str, str]) -> None:
    for name, value in keys.items():
        if len(value.encode()) > KEYS[name].longest_bytes:
            raise LoginError(LoginStatus.AUTHENTICATION_FAILURE, f"{name} is too long")
