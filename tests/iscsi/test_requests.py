"""Numbering and framing of an initiator's requests."""

from types import SimpleNamespace

import pytest

from pyiscsi_target.iscsi.constants import IMMEDIATE, Opcode
from pyiscsi_target.iscsi.digest import digest
from pyiscsi_target.iscsi.keys import Parameters
from pyiscsi_target.iscsi.pdu import DataOut, NopOut, ScsiCommand
from pyiscsi_target.iscsi.requests import RequestWriter
from pyiscsi_target.iscsi.text import ProtocolError

PING = Opcode.NOP_OUT | IMMEDIATE


def sent(writer: RequestWriter) -> bytes:
    whole = b"".join(writer.outgoing)
    writer.outgoing.clear()
    return whole


def numbers(stat_sn: int, exp_cmd_sn: int, max_cmd_sn: int) -> SimpleNamespace:
    return SimpleNamespace(stat_sn=stat_sn, exp_cmd_sn=exp_cmd_sn, max_cmd_sn=max_cmd_sn)


def test_requests_count_and_immediate_ones_do_not() -> None:
    writer = RequestWriter(0xFFFFFFFF, Parameters())
    writer.max_cmd_sn = 5
    for opcode, cmd_sn in ((0x00, 0xFFFFFFFF), (PING, 0), (0x00, 0), (0x00, 1)):
        writer.request(NopOut(opcode))
        assert NopOut.unpack(sent(writer)).cmd_sn == cmd_sn


def test_what_the_window_does_not_take_waits_in_order() -> None:
    writer = RequestWriter(1, Parameters())
    followers: list[int] = []
    for itt in (1, 2, 3):
        writer.request(ScsiCommand(itt=itt), then=lambda itt=itt: followers.append(itt))  # type: ignore[misc]
    assert (len(sent(writer)), followers) == (48, [1])
    writer.request(NopOut(PING, itt=9))
    assert NopOut.unpack(sent(writer)).cmd_sn == 2
    writer.account(numbers(0, 2, 3))
    waiting = sent(writer)
    assert [ScsiCommand.unpack(waiting, at).cmd_sn for at in (0, 48)] == [2, 3]
    assert followers == [1, 2, 3]


def test_a_waiting_request_can_be_withdrawn() -> None:
    writer = RequestWriter(1, Parameters())
    for itt in (1, 2, 3):
        writer.request(ScsiCommand(itt=itt))
    assert [writer.is_waiting(itt) for itt in (1, 2, 3)] == [False, True, True]
    for itt in (1, 2):  # the first one is on its way already
        writer.withdraw(itt)
    writer.account(numbers(0, 2, 9))
    whole = sent(writer)
    numbered = [ScsiCommand.unpack(whole, at) for at in (0, 48)]
    assert [(pdu.itt, pdu.cmd_sn) for pdu in numbered] == [(1, 1), (3, 2)]


@pytest.mark.parametrize(
    ("exp_cmd_sn", "max_cmd_sn", "result"),
    [
        (12, 30, (12, 30)),
        (8, 30, (10, 30)),
        (12, 15, (12, 20)),
        (25, 23, (10, 20)),
        (21, 20, (21, 20)),
    ],
)
def test_the_window_moves_forwards_only(
    exp_cmd_sn: int, max_cmd_sn: int, result: tuple[int, int]
) -> None:
    writer = RequestWriter(10, Parameters())
    writer.max_cmd_sn = 20
    writer.move_window(exp_cmd_sn, max_cmd_sn)
    assert (writer.exp_cmd_sn, writer.max_cmd_sn) == result


def test_stat_sn_must_be_the_next() -> None:
    writer = RequestWriter(1, Parameters())
    writer.exp_stat_sn = 0xFFFFFFFF
    writer.account(numbers(0xFFFFFFFF, 1, 1), counts=False)
    writer.account(numbers(0xFFFFFFFF, 1, 1))
    assert writer.exp_stat_sn == 0
    with pytest.raises(ProtocolError, match="StatSN"):
        writer.account(numbers(5, 1, 1))


def test_digests_cover_additional_headers_and_padding() -> None:
    writer = RequestWriter(1, Parameters(header_digest=True, data_digest=True))
    writer.digests = True
    writer.queue(NopOut(), b"odd", b"\0\1\1\0")
    whole = sent(writer)
    assert whole[52:56] == digest(whole[:52])
    assert whole[56:60] == b"odd\0"
    assert whole[60:] == digest(b"odd\0")


def test_data_out_is_cut_to_segments() -> None:
    writer = RequestWriter(1, Parameters(max_send_data_segment_length=512))
    writer.send_data(7, memoryview(bytes(2000)), 512, 1800, lun=1 << 48, ttt=9)
    whole, at, pieces = sent(writer), 0, []
    while at < len(whole):
        pdu = DataOut.unpack(whole, at)
        pieces.append((pdu.data_sn, pdu.buffer_offset, pdu.lengths, pdu.flags, pdu.lun, pdu.ttt))
        at += 48 + (pdu.lengths + 3 & ~3)
    assert pieces == [
        (0, 512, 512, 0, 1 << 48, 9),
        (1, 1024, 512, 0, 1 << 48, 9),
        (2, 1536, 264, 0x80, 1 << 48, 9),
    ]
