"""Every PDU's layout against the figures of RFC 7143 section 11."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.iscsi.constants import BHS_LENGTH, Opcode, Stage
from pyiscsi_target.iscsi.pdu import (
    BY_OPCODE,
    AsyncMessage,
    DataIn,
    DataOut,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    Pdu,
    ReadyToTransfer,
    Reject,
    ScsiCommand,
    ScsiResponse,
    SnackRequest,
    TaskManagementRequest,
    TaskManagementResult,
    TextRequest,
    TextResponse,
    data_segment_length,
    decode,
    opcode_of,
    stage_flags,
)
from tests.support.pdus import any_pdu

LENGTHS = {"lengths": 0x02_00_01_03}  # two words of AHS, 259 bytes of data
LUN = 0x0102030405060708
ITT = 0x11223344
TTT = 0x55667788
NUMBERS = {"stat_sn": 0xA0A1A2A3, "exp_cmd_sn": 0xB0B1B2B3, "max_cmd_sn": 0xC0C1C2C3}
REQUEST_NUMBERS = {"cmd_sn": 0xD0D1D2D3, "exp_stat_sn": 0xE0E1E2E3}

# Where those stand in every PDU that has them: byte offset -> hexadecimal (section 11.2.1).
AT_LENGTHS = {4: "02000103"}
AT_LUN = {8: "0102030405060708"}
AT_ITT = {16: "11223344"}
AT_TTT = {20: "55667788"}
AT_NUMBERS = {24: "a0a1a2a3", 28: "b0b1b2b3", 32: "c0c1c2c3"}
AT_REQUEST_NUMBERS = {24: "d0d1d2d3", 28: "e0e1e2e3"}

LAYOUTS: list[tuple[Pdu, dict[int, str]]] = [
    (
        NopOut(0x40, 0x80, lun=LUN, itt=ITT, ttt=TTT, **LENGTHS, **REQUEST_NUMBERS),
        {0: "4080", **AT_LENGTHS, **AT_LUN, **AT_ITT, **AT_TTT, **AT_REQUEST_NUMBERS},
    ),
    (
        NopIn(0x20, 0x80, lun=LUN, itt=ITT, ttt=TTT, **LENGTHS, **NUMBERS),
        {0: "2080", **AT_LENGTHS, **AT_LUN, **AT_ITT, **AT_TTT, **AT_NUMBERS},
    ),
    (
        ScsiCommand(
            0x01,
            0xE1,
            lun=LUN,
            itt=ITT,
            expected_data_transfer_length=0x00010200,
            cdb=bytes(range(0x28, 0x38)),
            **LENGTHS,
            **REQUEST_NUMBERS,
        ),
        {
            0: "01e1",
            20: "00010200",
            32: bytes(range(0x28, 0x38)).hex(),
            **AT_LENGTHS,
            **AT_LUN,
            **AT_ITT,
            **AT_REQUEST_NUMBERS,
        },
    ),
    (
        ScsiResponse(
            0x21,
            0x82,
            response=0x01,
            status=0x02,
            itt=ITT,
            snack_tag=0x01020304,
            exp_data_sn=5,
            bidirectional_read_residual=6,
            residual=7,
            **LENGTHS,
            **NUMBERS,
        ),
        {
            0: "21820102",
            20: "01020304",
            36: "000000050000000600000007",
            **AT_LENGTHS,
            **AT_ITT,
            **AT_NUMBERS,
        },
    ),
    (
        TaskManagementRequest(
            0x42,
            0x81,
            lun=LUN,
            itt=ITT,
            referenced_task_tag=TTT,
            ref_cmd_sn=8,
            exp_data_sn=9,
            **LENGTHS,
            **REQUEST_NUMBERS,
        ),
        {
            0: "4281",
            20: "55667788",
            32: "0000000800000009",
            **AT_LENGTHS,
            **AT_LUN,
            **AT_ITT,
            **AT_REQUEST_NUMBERS,
        },
    ),
    (
        TaskManagementResult(0x22, 0x80, response=0xFF, itt=ITT, **LENGTHS, **NUMBERS),
        {0: "2280ff", **AT_LENGTHS, **AT_ITT, **AT_NUMBERS},
    ),
    (
        DataOut(
            0x05,
            0x80,
            lun=LUN,
            itt=ITT,
            ttt=TTT,
            exp_stat_sn=0xE0E1E2E3,
            data_sn=3,
            buffer_offset=0x1000,
            **LENGTHS,
        ),
        {
            0: "0580",
            28: "e0e1e2e3",
            36: "0000000300001000",
            **AT_LENGTHS,
            **AT_LUN,
            **AT_ITT,
            **AT_TTT,
        },
    ),
    (
        DataIn(
            0x25,
            0x83,
            status=0x04,
            lun=LUN,
            itt=ITT,
            ttt=TTT,
            data_sn=3,
            buffer_offset=0x1000,
            residual=0x10,
            **LENGTHS,
            **NUMBERS,
        ),
        {
            0: "25830004",
            36: "000000030000100000000010",
            **AT_LENGTHS,
            **AT_LUN,
            **AT_ITT,
            **AT_TTT,
            **AT_NUMBERS,
        },
    ),
    (
        ReadyToTransfer(
            0x31,
            0x80,
            lun=LUN,
            itt=ITT,
            ttt=TTT,
            r2t_sn=1,
            buffer_offset=2,
            desired_length=3,
            **LENGTHS,
            **NUMBERS,
        ),
        {
            0: "3180",
            36: "000000010000000200000003",
            **AT_LENGTHS,
            **AT_LUN,
            **AT_ITT,
            **AT_TTT,
            **AT_NUMBERS,
        },
    ),
    (
        AsyncMessage(
            0x32,
            0x80,
            lun=LUN,
            event=1,
            vendor_code=2,
            parameter1=3,
            parameter2=4,
            parameter3=5,
            **LENGTHS,
            **NUMBERS,
        ),
        {
            0: "3280",
            16: "ffffffff",
            36: "0102000300040005",
            **AT_LENGTHS,
            **AT_LUN,
            **AT_NUMBERS,
        },
    ),
    (
        TextRequest(0x04, 0x80, lun=LUN, itt=ITT, ttt=TTT, **LENGTHS, **REQUEST_NUMBERS),
        {0: "0480", **AT_LENGTHS, **AT_LUN, **AT_ITT, **AT_TTT, **AT_REQUEST_NUMBERS},
    ),
    (
        TextResponse(0x24, 0x40, lun=LUN, itt=ITT, ttt=TTT, **LENGTHS, **NUMBERS),
        {0: "2440", **AT_LENGTHS, **AT_LUN, **AT_ITT, **AT_TTT, **AT_NUMBERS},
    ),
    (
        LoginRequest(
            0x43,
            0x87,
            version_max=1,
            version_min=2,
            isid=bytes.fromhex("400001370000"),
            tsih=0x0A0B,
            itt=ITT,
            cid=0x0C0D,
            **LENGTHS,
            **REQUEST_NUMBERS,
        ),
        {
            0: "43870102",
            8: "4000013700000a0b",
            20: "0c0d",
            **AT_LENGTHS,
            **AT_ITT,
            **AT_REQUEST_NUMBERS,
        },
    ),
    (
        LoginResponse(
            0x23,
            0x87,
            version_max=1,
            version_active=2,
            isid=bytes.fromhex("400001370000"),
            tsih=0x0A0B,
            itt=ITT,
            status=0x020B,
            **LENGTHS,
            **NUMBERS,
        ),
        {
            0: "23870102",
            8: "4000013700000a0b",
            36: "020b",
            **AT_LENGTHS,
            **AT_ITT,
            **AT_NUMBERS,
        },
    ),
    (
        LogoutRequest(0x46, 0x81, itt=ITT, cid=0x0C0D, **LENGTHS, **REQUEST_NUMBERS),
        {0: "4681", 20: "0c0d", **AT_LENGTHS, **AT_ITT, **AT_REQUEST_NUMBERS},
    ),
    (
        LogoutResponse(
            0x26,
            0x80,
            response=1,
            itt=ITT,
            time2wait_s=2,
            time2retain_s=20,
            **LENGTHS,
            **NUMBERS,
        ),
        {0: "268001", 40: "00020014", **AT_LENGTHS, **AT_ITT, **AT_NUMBERS},
    ),
    (
        SnackRequest(
            0x10,
            0x81,
            lun=LUN,
            itt=ITT,
            ttt=TTT,
            exp_stat_sn=0xE0E1E2E3,
            beg_run=6,
            run_length=7,
            **LENGTHS,
        ),
        {
            0: "1081",
            28: "e0e1e2e3",
            40: "0000000600000007",
            **AT_LENGTHS,
            **AT_LUN,
            **AT_ITT,
            **AT_TTT,
        },
    ),
    (
        Reject(0x3F, 0x80, reason=0x09, data_sn=7, **LENGTHS, **NUMBERS),
        {0: "3f8009", 16: "ffffffff", 36: "00000007", **AT_LENGTHS, **AT_NUMBERS},
    ),
]


def placed(parts: dict[int, str]) -> bytes:
    """A header that is zero but for `parts`."""
    header = bytearray(BHS_LENGTH)
    for offset, digits in parts.items():
        value = bytes.fromhex(digits)
        header[offset : offset + len(value)] = value
    return bytes(header)


def name_of(value: Any) -> str | None:
    return type(value).__name__ if isinstance(value, Pdu) else ""


@pytest.mark.parametrize(("pdu", "parts"), LAYOUTS, ids=name_of)
class TestLayout:
    def test_each_field_stands_where_the_rfc_puts_it(self, pdu: Pdu, parts: dict[int, str]) -> None:
        assert pdu.pack().hex(" ", 4) == placed(parts).hex(" ", 4)

    def test_reserved_bytes_are_ignored(self, pdu: Pdu, parts: dict[int, str]) -> None:
        noise = bytearray(b"\xff" * BHS_LENGTH)
        for offset, digits in parts.items():
            value = bytes.fromhex(digits)
            noise[offset : offset + len(value)] = value
        for field_offset in _zero_fields(pdu, parts):
            noise[field_offset] = 0
        assert decode(noise) == pdu


def _zero_fields(pdu: Pdu, parts: dict[int, str]) -> list[int]:
    """Offsets that a field covers though `parts` leaves them out, the field being zero."""
    named = {offset + i for offset, digits in parts.items() for i in range(len(digits) // 2)}
    ones = type(pdu).unpack(b"\xff" * BHS_LENGTH).pack()
    return [offset for offset, byte in enumerate(ones) if byte and offset not in named]


def test_every_class_has_a_layout_above() -> None:
    assert {type(pdu) for pdu, _ in LAYOUTS} == set(BY_OPCODE.values())
    assert {int(opcode) for opcode in Opcode} == set(BY_OPCODE)


@given(any_pdu(), st.binary(max_size=60))
def test_round_trip(pdu: Pdu, before: bytes) -> None:
    assert decode(pdu.pack()) == pdu
    assert decode(memoryview(bytearray(before + pdu.pack())), len(before)) == pdu


@given(any_pdu())
def test_the_immediate_bit_is_no_part_of_the_opcode(pdu: Pdu) -> None:
    assert opcode_of(pdu.pack()) == pdu.OPCODE


@pytest.mark.parametrize("opcode", sorted(set(range(64)) - set(BY_OPCODE)))
def test_an_undefined_opcode(opcode: int) -> None:
    with pytest.raises(KeyError):
        decode(bytes([opcode]) + bytes(47))


def test_the_data_segment_length_is_24_bits() -> None:
    assert data_segment_length(0xFF_FFFFFF) == 0xFFFFFF
    assert data_segment_length(0xFF_000000) == 0


@pytest.mark.parametrize(
    ("current", "following", "flags"),
    [
        (Stage.SECURITY, Stage.OPERATIONAL, 0b0001),
        (Stage.SECURITY, Stage.FULL_FEATURE, 0b0011),
        (Stage.OPERATIONAL, Stage.FULL_FEATURE, 0b0111),
    ],
)
def test_stages_share_one_byte(current: Stage, following: Stage, flags: int) -> None:
    assert stage_flags(current, following) == flags
