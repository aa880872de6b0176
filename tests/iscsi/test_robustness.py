"""No input crashes or stalls the target's engine: random PDUs in every phase, and random bytes."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyiscsi_target.iscsi.pdu import BY_OPCODE
from tests.support.memory import (
    DISCOVERY_NAMES,
    RawPeer,
    Target,
    decode_stream,
    frame,
    names,
)

TAGS = st.sampled_from([0, 1, 2, 3, 0xFFFFFFFF])
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 130, 0xFFFFFFFF])
FIELDS = {
    "opcode": None,
    "flags": st.integers(0, 255),
    "lun": st.sampled_from([0, 1 << 48, (1 << 64) - 1]),
    "itt": TAGS,
    "ttt": TAGS,
    "referenced_task_tag": TAGS,
    "cmd_sn": NUMBERS,
    "ref_cmd_sn": NUMBERS,
    "data_sn": st.integers(0, 2),
    "buffer_offset": st.sampled_from([0, 512, 1024, 0xFFFFFFFF]),
    "expected_data_transfer_length": st.sampled_from([0, 1, 512, 2048, 1 << 20, 0xFFFFFFFF]),
    "cdb": st.sampled_from([b"\x2a\0\0\0\0\0\0\0\x04\0", b"\x28\0\0\0\0\0\0\0\x04\0", b"\xff"]),
    "cid": st.integers(0, 2),
}
INITIATOR_OPCODES = [opcode for opcode in BY_OPCODE if opcode < 0x20]
TEXTS = st.sampled_from(
    [
        b"",
        b"\0",
        b"=",
        b"SendTargets=All\0",
        b"SendTargets=",
        b"MaxRecvDataSegmentLength=512\0",
        b"MaxRecvDataSegmentLength=0x\0",
        b"AuthMethod=CHAP\0",
        b"CHAP_N=\xff\0CHAP_R=0x1\0",
        b"InitiatorName=iqn.x\0TargetName=iqn.y\0",
        bytes(512),
        bytes(2048),
    ]
)


@st.composite
def pdus(draw: st.DrawFn) -> bytes:
    """A PDU whose lengths hold and whose fields may be anything."""
    opcode = draw(st.sampled_from(INITIATOR_OPCODES))
    kind: Any = BY_OPCODE[opcode]
    fields: dict[str, Any] = {
        name: draw(strategy)
        for name, strategy in FIELDS.items()
        if strategy is not None and name in kind.__match_args__
    }
    fields["opcode"] = opcode | draw(st.sampled_from([0, 0x40, 0x80]))
    if "cdb" in fields:
        fields["cdb"] = fields["cdb"].ljust(16, b"\0")
    ahs = draw(st.sampled_from([b"", b"", bytes(4), b"\x00\x05\x01\x00abcd", b"\xff" * 8]))
    return frame(kind(**fields), draw(TEXTS), ahs)


def prepared(phase: str) -> RawPeer:
    peer = RawPeer(Target())
    if phase == "full feature":
        peer.log_in()
    elif phase == "discovery":
        peer.login(DISCOVERY_NAMES)
    elif phase == "login":
        peer.login(names(), flags=0)
    return peer


@pytest.mark.parametrize("phase", ["nothing", "login", "discovery", "full feature"])
@settings(max_examples=150, deadline=None)
@given(sent=st.lists(pdus(), min_size=1, max_size=12))
def test_any_sequence_of_pdus_is_answered_in_form(phase: str, sent: list[bytes]) -> None:
    peer = prepared(phase)
    stat_sn = None
    for pdu in sent:
        for answer, _ in decode_stream(peer.target.feed(pdu)):
            counted = getattr(answer, "stat_sn", None)
            if type(answer).__name__ == "ReadyToTransfer" or counted is None:
                continue
            if type(answer).__name__ == "DataIn" and not answer.flags & 1:
                continue
            assert stat_sn is None or counted == (stat_sn + 1) & 0xFFFFFFFF
            stat_sn = counted


@pytest.mark.parametrize("phase", ["nothing", "login", "discovery", "full feature"])
@settings(max_examples=100, deadline=None)
@given(noise=st.binary(max_size=400), chunk_length=st.integers(1, 60))
def test_any_bytes_are_taken(phase: str, noise: bytes, chunk_length: int) -> None:
    peer = prepared(phase)
    decode_stream(peer.target.feed(noise, chunk_length))
