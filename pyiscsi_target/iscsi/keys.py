"""The key table of RFC 7143 section 13: one row per key, and the negotiation that it drives.

A row says the type of a key, its range, its default, how two offers become one result, which side
may send it, in which phase, and when it has no meaning. Both ends of a connection negotiate by it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum, Flag, auto

from .text import TEXT_VALUE_LENGTH, ProtocolError, parse_number

NOT_UNDERSTOOD = "NotUnderstood"
IRRELEVANT = "Irrelevant"
REJECT = "Reject"
RESERVED_ANSWERS = frozenset({NOT_UNDERSTOOD, IRRELEVANT, REJECT})

CRC32C = "CRC32C"
NONE = "None"

Value = bool | int | str


class Kind(Enum):
    """The types of section 6.1."""

    BOOLEAN = auto()
    NUMBER = auto()
    LIST = auto()
    TEXT = auto()


class Phase(Flag):
    """Where a key may be sent (the `Use` line of each key in section 13)."""

    SECURITY = auto()
    OPERATIONAL = auto()
    FULL_FEATURE = auto()


class Sender(Flag):
    INITIATOR = auto()
    TARGET = auto()
    BOTH = INITIATOR | TARGET


LOGIN = Phase.SECURITY | Phase.OPERATIONAL
ANY = LOGIN | Phase.FULL_FEATURE
LONGEST = (1 << 24) - 1


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the table. `result` None: declared, not negotiated."""

    name: str
    kind: Kind
    default: Value | None
    result: Callable[[Value, Value], Value] | None
    phase: Phase
    sender: Sender = Sender.BOTH
    lowest: int = 0
    highest: int = 0
    normal_session_only: bool = False
    longest_bytes: int = TEXT_VALUE_LENGTH

    def parse(self, text: str) -> Value:
        """The value of this key's type. ValueError if it is not one."""
        if len(text.encode()) > self.longest_bytes:
            raise ValueError("too long")
        if self.kind is Kind.BOOLEAN:
            if text not in ("Yes", "No"):
                raise ValueError("neither Yes nor No")
            return text == "Yes"
        if self.kind is Kind.NUMBER:
            return parse_number(text, self.lowest, self.highest)
        return text


def format_value(value: Value) -> str:
    """A value as it is sent."""
    if isinstance(value, bool):
        return "Yes" if value else "No"
    return str(value)


def _and(ours: Value, theirs: Value) -> Value:
    return bool(ours) and bool(theirs)


def _or(ours: Value, theirs: Value) -> Value:
    return bool(ours) or bool(theirs)


def _min(ours: Value, theirs: Value) -> Value:
    return min(int(ours), int(theirs))


def _max(ours: Value, theirs: Value) -> Value:
    return max(int(ours), int(theirs))


def first_common(ours: Value, theirs: Value) -> Value:
    """List negotiation (section 6.2.1): the first of the offered values that we support."""
    supported = str(ours).split(",")
    for offered in str(theirs).split(","):
        if offered in supported:
            return offered
    return REJECT


def _refuse(_ours: Value, _theirs: Value) -> Value:
    return REJECT


_BOTH = Sender.BOTH
_INITIATOR = Sender.INITIATOR
_TARGET = Sender.TARGET
_OPERATIONAL = Phase.OPERATIONAL
_BOOLEAN = Kind.BOOLEAN
_NUMBER = Kind.NUMBER
_LIST = Kind.LIST
_TEXT = Kind.TEXT

# fmt: off
TABLE: tuple[Key, ...] = (
    # name, type, default, result, phase, sender, lowest, highest, normal session only, length
    Key("HeaderDigest", _LIST, NONE, first_common, _OPERATIONAL),  # 13.1
    Key("DataDigest", _LIST, NONE, first_common, _OPERATIONAL),  # 13.1
    Key("MaxConnections", _NUMBER, 1, _min, _OPERATIONAL, _BOTH, 1, 65535, True),  # 13.2
    Key("SendTargets", _TEXT, None, None, Phase.FULL_FEATURE, _INITIATOR),  # 13.3
    Key("TargetName", _TEXT, None, None, ANY, _BOTH),  # 13.4
    Key("InitiatorName", _TEXT, None, None, LOGIN, _INITIATOR),  # 13.5
    Key("TargetAlias", _TEXT, None, None, ANY, _TARGET),  # 13.6
    Key("InitiatorAlias", _TEXT, None, None, ANY, _INITIATOR),  # 13.7
    Key("TargetAddress", _TEXT, None, None, ANY, _TARGET),  # 13.8
    Key("TargetPortalGroupTag", _NUMBER, None, None, LOGIN, _TARGET, 0, 65535),  # 13.9
    Key("InitialR2T", _BOOLEAN, True, _or, _OPERATIONAL, _BOTH, 0, 0, True),  # 13.10
    Key("ImmediateData", _BOOLEAN, True, _and, _OPERATIONAL, _BOTH, 0, 0, True),  # 13.11
    Key("MaxRecvDataSegmentLength", _NUMBER, 8192, None, ANY, _BOTH, 512, LONGEST),  # 13.12
    Key("MaxBurstLength", _NUMBER, 262144, _min, _OPERATIONAL, _BOTH, 512, LONGEST, True),  # 13.13
    Key("FirstBurstLength", _NUMBER, 65536, _min, _OPERATIONAL, _BOTH, 512, LONGEST, True),  # 13.14
    Key("DefaultTime2Wait", _NUMBER, 2, _max, _OPERATIONAL, _BOTH, 0, 3600),  # 13.15
    Key("DefaultTime2Retain", _NUMBER, 20, _min, _OPERATIONAL, _BOTH, 0, 3600),  # 13.16
    Key("MaxOutstandingR2T", _NUMBER, 1, _min, _OPERATIONAL, _BOTH, 1, 65535, True),  # 13.17
    Key("DataPDUInOrder", _BOOLEAN, True, _or, _OPERATIONAL, _BOTH, 0, 0, True),  # 13.18
    Key("DataSequenceInOrder", _BOOLEAN, True, _or, _OPERATIONAL, _BOTH, 0, 0, True),  # 13.19
    Key("ErrorRecoveryLevel", _NUMBER, 0, _min, _OPERATIONAL, _BOTH, 0, 2),  # 13.20
    Key("SessionType", _TEXT, "Normal", None, LOGIN, _INITIATOR),  # 13.21
    Key("TaskReporting", _LIST, "RFC3720", first_common, _OPERATIONAL, _BOTH, 0, 0, True),  # 13.23
    Key("iSCSIProtocolLevel", _NUMBER, 1, _min, _OPERATIONAL, _BOTH, 0, 31, True),  # 13.24
    Key("OFMarker", _TEXT, None, _refuse, _OPERATIONAL),  # 13.25
    Key("IFMarker", _TEXT, None, _refuse, _OPERATIONAL),  # 13.25
    Key("OFMarkInt", _TEXT, None, _refuse, _OPERATIONAL),  # 13.25
    Key("IFMarkInt", _TEXT, None, _refuse, _OPERATIONAL),  # 13.25
    Key("AuthMethod", _LIST, NONE, first_common, Phase.SECURITY, _BOTH),  # 12
    Key("CHAP_A", _LIST, None, first_common, Phase.SECURITY, _BOTH),  # 12.1.3
    Key("CHAP_I", _NUMBER, None, None, Phase.SECURITY, _BOTH, 0, 255),  # 12.1.3
    Key("CHAP_C", _TEXT, None, None, Phase.SECURITY, _BOTH, longest_bytes=2 + 2 * 1024),  # 12.1.3
    Key("CHAP_N", _TEXT, None, None, Phase.SECURITY, _BOTH),  # 12.1.3
    Key("CHAP_R", _TEXT, None, None, Phase.SECURITY, _BOTH, longest_bytes=2 + 2 * 1024),  # 12.1.3
)
# fmt: on

KEYS: Mapping[str, Key] = {key.name: key for key in TABLE}


@dataclass(frozen=True, slots=True)
class Limits:
    """What this end offers in negotiation, in the terms of section 13; lengths are bytes."""

    header_digest: str = f"{CRC32C},{NONE}"
    data_digest: str = f"{CRC32C},{NONE}"
    initial_r2t: bool = False
    immediate_data: bool = True
    max_recv_data_segment_length: int = 262144
    max_burst_length: int = 1048576
    first_burst_length: int = 262144
    default_time2wait_s: int = 2
    default_time2retain_s: int = 0
    max_outstanding_r2t: int = 8

    def offers(self) -> dict[str, Value]:
        """Our side of every negotiated key."""
        return {
            "HeaderDigest": self.header_digest,
            "DataDigest": self.data_digest,
            "MaxConnections": 1,
            "InitialR2T": self.initial_r2t,
            "ImmediateData": self.immediate_data,
            "MaxBurstLength": self.max_burst_length,
            "FirstBurstLength": self.first_burst_length,
            "DefaultTime2Wait": self.default_time2wait_s,
            "DefaultTime2Retain": self.default_time2retain_s,
            "MaxOutstandingR2T": self.max_outstanding_r2t,
            "DataPDUInOrder": True,
            "DataSequenceInOrder": True,
            "ErrorRecoveryLevel": 0,
            "TaskReporting": "RFC3720",
            "iSCSIProtocolLevel": 2,
        }


@dataclass(slots=True)
class Parameters:
    """What holds on a connection once negotiated: the defaults of section 13 until then.

    `max_send_data_segment_length` is the peer's MaxRecvDataSegmentLength.
    """

    header_digest: bool = False
    data_digest: bool = False
    initial_r2t: bool = True
    immediate_data: bool = True
    max_recv_data_segment_length: int = 8192
    max_send_data_segment_length: int = 8192
    max_burst_length: int = 262144
    first_burst_length: int = 65536
    default_time2wait_s: int = 2
    default_time2retain_s: int = 20
    max_outstanding_r2t: int = 1
    protocol_level: int = 1

    def settle(self, name: str, value: Value) -> None:
        """Record a negotiated result."""
        if attribute := _ATTRIBUTE.get(name):
            setattr(self, attribute, value == CRC32C if name in _DIGESTS else value)


_DIGESTS = frozenset({"HeaderDigest", "DataDigest"})
_ATTRIBUTE = {
    "HeaderDigest": "header_digest",
    "DataDigest": "data_digest",
    "InitialR2T": "initial_r2t",
    "ImmediateData": "immediate_data",
    "MaxBurstLength": "max_burst_length",
    "FirstBurstLength": "first_burst_length",
    "DefaultTime2Wait": "default_time2wait_s",
    "DefaultTime2Retain": "default_time2retain_s",
    "MaxOutstandingR2T": "max_outstanding_r2t",
    "iSCSIProtocolLevel": "protocol_level",
}
assert set(_ATTRIBUTE.values()) <= {item.name for item in fields(Parameters)}


@dataclass(slots=True)
class Negotiation:
    """One login's operational negotiation, seen from one side (section 6.2).

    `parameters` collects the results; `declared` what the peer declared.
    """

    offers: Mapping[str, Value]
    parameters: Parameters
    us: Sender
    discovery: bool = False
    declared: dict[str, Value] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def answer(self, pairs: Iterable[tuple[str, str]], phase: Phase) -> list[tuple[str, str]]:
        """The answers to what the peer sent, in its order. Raises ProtocolError."""
        answers = []
        for name, text in pairs:
            if name in self._seen:
                if self._repeats(name, text):
                    continue
                raise ProtocolError(f"{name} was negotiated before")  # section 6.2
            if (answer := self._answer_one(name, text, phase)) is not None:
                answers.append((name, answer))
        return answers

    def _repeats(self, name: str, text: str) -> bool:
        """Whether a declaration just says again what it said: libiscsi does so at each stage."""
        return name in self.declared and format_value(self.declared[name]) == text

    def _answer_one(self, name: str, text: str, phase: Phase) -> str | None:
        key = KEYS.get(name)
        if key is None:
            return NOT_UNDERSTOOD
        if text in RESERVED_ANSWERS:
            raise ProtocolError(f"{name}={text} answers nothing that was offered")
        if self.us is key.sender or not phase & key.phase:
            return REJECT
        self._seen.add(name)
        try:
            value = key.parse(text)
        except ValueError as error:
            if key.result is None:
                raise ProtocolError(f"{name}: {error}") from None
            return REJECT
        if key.result is None:
            self._declare(name, value)
            return None
        if key.normal_session_only and self.discovery:
            return IRRELEVANT
        return self._settle(key, value)

    def _declare(self, name: str, value: Value) -> None:
        self.declared[name] = value
        if name == "MaxRecvDataSegmentLength":
            self.parameters.max_send_data_segment_length = int(value)

    def _settle(self, key: Key, theirs: Value) -> str:
        assert key.result is not None
        result = key.result(self.offers.get(key.name, REJECT), theirs)
        if result != REJECT:
            self.parameters.settle(key.name, result)
        return format_value(result)

    def finish(self) -> None:
        """Apply the rules that span keys, at the end of login. Raises ProtocolError."""
        for name, agreed in (
            ("HeaderDigest", self.parameters.header_digest),
            ("DataDigest", self.parameters.data_digest),
        ):
            if not agreed and NONE not in str(self.offers[name]).split(","):
                raise ProtocolError(f"{name}={CRC32C} is required here")
        if self.parameters.first_burst_length > self.parameters.max_burst_length:
            if {"FirstBurstLength", "MaxBurstLength"} <= self._seen:
                raise ProtocolError("FirstBurstLength is above MaxBurstLength")  # section 13.14
            self.parameters.first_burst_length = self.parameters.max_burst_length
