"""No target can crash the initiator's engine: random PDUs in every phase, and random bytes."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyiscsi_target.iscsi.chap import Credentials
from pyiscsi_target.iscsi.constants import TaskManagement
from pyiscsi_target.iscsi.initiator import InitiatorConnection
from pyiscsi_target.iscsi.initiator_events import TargetFailed
from pyiscsi_target.iscsi.initiator_login import InitiatorSettings
from pyiscsi_target.iscsi.keys import Limits
from pyiscsi_target.iscsi.pdu import BY_OPCODE, LoginResponse
from tests.support.memory import (
    INITIATOR_NAME,
    TARGET_NAME,
    Pair,
    Randomness,
    frame,
    read_10,
    write_10,
)

WITHOUT_DIGESTS = Limits(header_digest="None", data_digest="None")
FIELDS = {
    "flags": st.integers(0, 255),
    "response": st.integers(0, 2),
    "status": st.sampled_from([0, 2, 0x0101, 0x0201]),
    "lun": st.sampled_from([0, 1 << 48]),
    "itt": st.sampled_from([0, 1, 2, 3, 4, 5, 0xFFFFFFFF]),
    "ttt": st.sampled_from([0, 1, 0xFFFFFFFF]),
    "stat_sn": st.integers(0, 8),
    "exp_cmd_sn": st.sampled_from([0, 1, 2, 5, 0xFFFFFFFF]),
    "max_cmd_sn": st.sampled_from([0, 1, 5, 130, 0xFFFFFFFF]),
    "data_sn": st.integers(0, 2),
    "r2t_sn": st.integers(0, 2),
    "exp_data_sn": st.integers(0, 2),
    "buffer_offset": st.sampled_from([0, 512, 0xFFFFFFFF]),
    "desired_length": st.sampled_from([0, 1, 512, 1 << 20, 0xFFFFFFFF]),
    "residual": st.sampled_from([0, 1, 0xFFFFFFFF]),
    "reason": st.integers(0, 12),
    "event": st.sampled_from([0, 1, 2, 3, 4, 5, 255]),
}
TARGET_OPCODES = [opcode for opcode in BY_OPCODE if opcode >= 0x20]
DATA = st.sampled_from(
    [
        b"",
        b"\0",
        b"=",
        b"\x01",
        b"\xff\xff\x70",
        b"\x00\x12\x70" + bytes(17),
        b"TargetName=iqn.x\0TargetAddress=a\0",
        b"AuthMethod=CHAP\0",
        b"CHAP_A=5\0CHAP_I=1\0CHAP_C=0x00\0",
        b"CHAP_N=\xc3\xa4\0CHAP_R=0x1\0",
        b"MaxBurstLength=0x\0HeaderDigest=CRC32C\0",
        bytes(48),
        bytes(47),
        bytes(512),
    ]
)


@st.composite
def pdus(draw: st.DrawFn) -> bytes:
    """A PDU of a target whose lengths hold and whose fields may be anything."""
    kind: Any = BY_OPCODE[draw(st.sampled_from(TARGET_OPCODES))]
    named = FIELDS.keys() & set(kind.__match_args__)
    fields = {name: draw(FIELDS[name]) for name in sorted(named)}
    if kind is not LoginResponse and "status" in fields:
        fields["status"] &= 0xFF  # a SAM status; that of a login has two bytes
    ahs = draw(st.sampled_from([b"", b"", bytes(4)]))
    return frame(kind(**fields), draw(DATA), ahs)


def prepared(phase: str) -> InitiatorConnection:
    credentials = Credentials("host", b"a secret of some length") if phase == "chap" else None
    known = InitiatorSettings(
        INITIATOR_NAME, TARGET_NAME, limits=WITHOUT_DIGESTS, credentials=credentials
    )
    if phase != "full feature":
        engine = InitiatorConnection(known, Randomness())
        engine.begin()
        return engine
    pair = Pair(known)
    pair.log_in()
    engine = pair.initiator
    engine.command(0, read_10(0, 1), read_length=512)
    engine.command(0, write_10(0, 4), data_out=bytes(2048))
    engine.nop_out()
    engine.text([("SendTargets", "All")])
    engine.task_management(TaskManagement.LOGICAL_UNIT_RESET)
    return engine


@pytest.mark.parametrize("phase", ["login", "chap", "full feature"])
@given(st.lists(pdus(), min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_random_pdus(phase: str, sent: list[bytes]) -> None:
    engine = prepared(phase)
    for pdu in sent:
        failed = [e for e in engine.receive(pdu) if isinstance(e, TargetFailed)]
        assert engine.closed or not failed
        engine.take_outgoing()


@pytest.mark.parametrize("phase", ["login", "full feature"])
@given(st.binary(min_size=1, max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_bytes(phase: str, sent: bytes) -> None:
    prepared(phase).receive(sent)
