"""TransportIDs of iSCSI initiator ports, and every length in them that may be wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.scsi import transport_ids
from pyiscsi_target.scsi.sense import Asc, FieldPointer, ScsiError

DEVICE = "iqn.2026-11.lab.example:node"
PORT = f"{DEVICE},i,0x400001370000"
OFFSET = 24


def transport_id(name: bytes, *, kind: int = 0x45, length: int | None = None) -> bytes:
    padded = name.ljust(max(20, (len(name) + 4) // 4 * 4), b"\0")
    return bytes((kind, 0)) + (len(padded) if length is None else length).to_bytes(2) + padded


def refusal(parameters: bytes, offset: int = OFFSET) -> FieldPointer:
    with pytest.raises(ScsiError) as error:
        transport_ids.decode(bytes(offset) + parameters, offset)
    assert error.value.asc is Asc.INVALID_FIELD_IN_PARAMETER_LIST
    assert error.value.field is not None
    return error.value.field


def test_an_initiator_port_there_and_back() -> None:
    encoded = transport_ids.encode(PORT)
    assert encoded == bytes.fromhex("45 00 0030") + PORT.encode() + bytes(48 - len(PORT))
    decoded = transport_ids.decode(bytes(3) + encoded + b"\xff", 3)
    assert decoded == transport_ids.TransportId(PORT, True, len(encoded))


@pytest.mark.parametrize("length", [1, 19, 20, 23, 24, 240])
def test_names_are_terminated_and_padded(length: int) -> None:
    encoded = transport_ids.encode("n" * length)
    assert len(encoded) % 4 == 0
    assert len(encoded) == max(24, 4 + (length // 4 + 1) * 4)
    assert encoded.endswith(b"\0")


def test_case_does_not_count() -> None:
    assert transport_ids.decode(transport_id(PORT.upper().encode()), 0).name == PORT


def test_an_initiator_device() -> None:
    decoded = transport_ids.decode(transport_id(DEVICE.encode(), kind=0x05), 0)
    assert (decoded.name, decoded.is_port) == (DEVICE, False)
    assert transport_ids.device_name(PORT) == DEVICE


@pytest.mark.parametrize(
    ("parameters", "byte", "bit"),
    [
        (b"\x45\0\0", 0, 7),
        (transport_id(PORT.encode(), kind=0x46), 0, 3),
        (transport_id(PORT.encode(), kind=0x85), 0, 7),
        (transport_id(PORT.encode(), length=16), 2, 7),
        (transport_id(PORT.encode(), length=47), 2, 7),
        (transport_id(PORT.encode(), length=52), 2, 7),
        (transport_id(b"n" * 300), 2, 7),
        (transport_id(b"x" * 20, length=20)[:24], 4, 7),
        (transport_id(b"\xff\xfe"), 4, 7),
        (transport_id(b""), 4, 7),
        (transport_id(DEVICE.encode()), 4, 7),
        (transport_id(PORT[:-1].encode()), 4, 7),
        (transport_id(PORT.encode() + b"0"), 4, 7),
        (transport_id(PORT.encode(), kind=0x05), 4, 7),
    ],
    ids=[
        "header cut",
        "another protocol",
        "reserved format",
        "too short",
        "no multiple of four",
        "longer than the list",
        "longer than a name",
        "not terminated",
        "no UTF-8",
        "empty",
        "port without ISID",
        "ISID too short",
        "ISID too long",
        "device with ISID",
    ],
)
def test_what_is_wrong_is_pointed_at(parameters: bytes, byte: int, bit: int) -> None:
    assert refusal(parameters) == FieldPointer(OFFSET + byte, bit, in_cdb=False)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_are_read_within_their_bounds(parameters: bytes, offset: int) -> None:
    try:
        decoded = transport_ids.decode(parameters, offset)
    except ScsiError:
        return
    assert offset + decoded.length_bytes <= len(parameters)
