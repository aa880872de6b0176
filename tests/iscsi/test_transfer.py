"""A command's data-out: sequences, R2Ts, and what breaks them, against a simple initiator."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.iscsi.constants import FINAL, RESERVED_TAG
from pyiscsi_target.iscsi.keys import Parameters
from pyiscsi_target.iscsi.text import ProtocolError
from pyiscsi_target.iscsi.transfer import (
    INCORRECT_AMOUNT_OF_DATA,
    INVALID_FIELD_IN_COMMAND_IU,
    PROTOCOL_SERVICE_CRC_ERROR,
    SOLICITED_LENGTH_MAX,
    UNEXPECTED_UNSOLICITED_DATA,
    Command,
    Transfer,
    TransferQueue,
)

KIB = 1024
NO_TTT = RESERVED_TAG


def parameters(max_burst: int = 4 * KIB, outstanding: int = 1) -> Parameters:
    return Parameters(max_burst_length=max_burst, max_outstanding_r2t=outstanding)


def command(itt: int, wanted: int, immediate: int = 0, unsolicited_end: int = 0) -> Command:
    """A write whose CDB takes `wanted` bytes, as `solicit` leaves it."""
    write = Command(itt, 0, bytes(16), 0xA1, wanted, 1)
    write.transfer = Transfer(immediate, unsolicited_end)
    write.transfer.wanted = wanted
    return write


def transfer_of(write: Command) -> Transfer:
    assert write.transfer is not None
    return write.transfer


def pieces(start: int, end: int, segment: int) -> Iterator[tuple[int, int, int, int]]:
    """A sequence as an initiator sends it: flags, DataSN, buffer offset, length of each PDU."""
    offsets = range(start, end, segment)
    for data_sn, offset in enumerate(offsets):
        length = min(segment, end - offset)
        yield FINAL if offset + length == end else 0, data_sn, offset, length


@dataclass(frozen=True)
class Shape:
    """How a write's data is cut; lengths are bytes."""

    wanted: int
    immediate: int
    first_burst: int
    max_burst: int
    segment: int
    outstanding: int


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    wanted = draw(st.integers(1, 5000))
    return Shape(
        wanted,
        draw(st.integers(0, wanted)),
        draw(st.integers(0, wanted)),
        draw(st.integers(1, 2000)),
        draw(st.integers(1, 800)),
        draw(st.integers(1, 4)),
    )


Sequence = tuple[int, int, int]  # TTT, first buffer offset, end


def next_sequences(queue: TransferQueue, terms: Parameters) -> list[Sequence]:
    return [
        (r2t.ttt, r2t.buffer_offset, r2t.buffer_offset + r2t.desired_length)
        for r2t in queue.due(terms)
    ]


def send(queue: TransferQueue, write: Command, sequence: Sequence, segment: int) -> None:
    """What an initiator does for one sequence, and the connection with what comes."""
    ttt, start, end = sequence
    for flags, data_sn, offset, length in pieces(start, end, segment):
        assert not transfer_of(write).complete
        assert transfer_of(write).in_sequence(data_sn)
        transfer_of(write).receive(ttt, flags, offset, length)
        if ttt != NO_TTT:
            queue.arrived(transfer_of(write), length)
    queue.add(write)


@given(shapes())
def test_any_write_is_asked_for_once_and_whole(shape: Shape) -> None:
    """Immediate, unsolicited and solicited data together cover the buffer, in order, once."""
    write = command(1, shape.wanted, shape.immediate, shape.first_burst)
    queue, terms = TransferQueue(), parameters(shape.max_burst, shape.outstanding)
    queue.add(write)
    unsolicited_end = max(shape.immediate, shape.first_burst)
    sequences: list[Sequence] = []
    if unsolicited_end > shape.immediate:
        sequences.append((NO_TTT, shape.immediate, unsolicited_end))
    covered = shape.immediate
    asked = 0
    while not transfer_of(write).complete:
        solicited = next_sequences(queue, terms)
        asked += len(solicited)
        sequences += solicited
        assert 0 < len(sequences) <= shape.outstanding
        ttt, start, end = sequences.pop(0)
        assert start == covered
        assert ttt == NO_TTT or end - start <= shape.max_burst
        send(queue, write, (ttt, start, end), shape.segment)
        covered = end
    assert covered == max(shape.wanted, unsolicited_end)
    assert transfer_of(write).next_r2t_sn == asked
    assert next_sequences(queue, terms) == []


class TestTransfer:
    @pytest.mark.parametrize(
        ("immediate", "unsolicited_end", "wanted", "complete"),
        [
            (0, 0, 0, True),
            (512, 0, 512, True),
            (512, 0, 100, True),  # more came than the CDB takes
            (512, 0, 513, False),
            (512, 1024, 512, False),  # enough is here, but a sequence is open
            (0, 0, None, False),  # what the CDB takes is not known yet
        ],
    )
    def test_complete(
        self, immediate: int, unsolicited_end: int, wanted: int | None, complete: bool
    ) -> None:
        transfer = Transfer(immediate, unsolicited_end)
        transfer.wanted = wanted
        assert transfer.complete is complete

    def test_nothing_is_asked_for_before_the_unsolicited_data_ends(self) -> None:
        write = command(1, 4 * KIB, 512, 1024)
        assert transfer_of(write).next_burst(parameters(), 1) is None
        transfer_of(write).receive(NO_TTT, FINAL, 512, 512)
        assert transfer_of(write).next_burst(parameters(), 1) == (1024, 3 * KIB)

    def test_unsolicited_data_may_end_early(self) -> None:
        """Section 11.7.1; the rest is asked for."""
        write = command(1, 4 * KIB, 0, 2 * KIB)
        transfer_of(write).receive(NO_TTT, FINAL, 0, 512)
        assert transfer_of(write).next_burst(parameters(), 1) == (512, 4 * KIB - 512)

    def test_an_empty_data_out_ends_a_sequence_too(self) -> None:
        write = command(1, KIB, 512, KIB)
        transfer_of(write).receive(NO_TTT, 0, 512, 256)
        transfer_of(write).receive(NO_TTT, FINAL, 768, 0)
        assert transfer_of(write).next_burst(parameters(), 1) == (768, 256)

    # Within one solicited sequence, TTT 5, of 1024 bytes from 0: what may not come first.
    @pytest.mark.parametrize(
        ("ttt", "flags", "offset", "length", "message"),
        [
            (6, FINAL, 0, 1024, "not asked for"),
            (NO_TTT, FINAL, 0, 1024, "not asked for"),
            (5, 0, 512, 512, "outside"),
            (5, FINAL, 0, 1025, "outside"),
            (5, FINAL, 0, 1023, "ended early"),
            (5, FINAL, 0, 0, "ended early"),
            (5, 0, 0, 1024, "without F"),
        ],
    )
    def test_what_breaks_a_sequence(
        self, ttt: int, flags: int, offset: int, length: int, message: str
    ) -> None:
        write = command(1, 2 * KIB)
        transfer_of(write).next_burst(parameters(KIB), 5)
        with pytest.raises(ProtocolError, match=message):
            transfer_of(write).receive(ttt, flags, offset, length)

    def test_sequences_are_answered_in_the_order_of_their_r2ts(self) -> None:
        """DataSequenceInOrder=Yes."""
        write = command(1, 2 * KIB)
        for ttt in (5, 6):
            transfer_of(write).next_burst(parameters(KIB, 2), ttt)
        with pytest.raises(ProtocolError, match="not asked for"):
            transfer_of(write).receive(6, FINAL, KIB, KIB)

    def test_each_sequence_counts_its_own_data_sn(self) -> None:
        write = command(1, 2 * KIB)
        for ttt in (5, 6):
            transfer_of(write).next_burst(parameters(KIB, 2), ttt)
        transfer_of(write).receive(5, 0, 0, 512)
        assert not transfer_of(write).in_sequence(0)
        assert transfer_of(write).in_sequence(1)
        transfer_of(write).receive(5, FINAL, 512, 512)
        assert transfer_of(write).in_sequence(0)
        transfer_of(write).receive(6, FINAL, KIB, KIB)
        assert transfer_of(write).complete

    def test_nothing_may_come_once_all_sequences_ended(self) -> None:
        write = command(1, KIB, 0, KIB)
        transfer_of(write).receive(NO_TTT, FINAL, 0, KIB)
        with pytest.raises(ProtocolError, match="not asked for"):
            transfer_of(write).receive(NO_TTT, FINAL, KIB, 0)

    def test_a_transfer_that_ends_early_counts_only_the_ends_of_sequences(self) -> None:
        write = command(1, 2 * KIB)
        for ttt in (5, 6):
            transfer_of(write).next_burst(parameters(KIB, 2), ttt)
        for flags, left in [(0, 2), (FINAL, 1), (0, 1), (FINAL, 0), (FINAL, 0)]:
            transfer_of(write).discard(flags)
            assert len(transfer_of(write).bursts) == left


class TestQueue:
    def test_first_come_first_served(self) -> None:
        queue = TransferQueue()
        for itt in (1, 2, 3):
            queue.add(command(itt, KIB))
        assert [r2t.itt for r2t in queue.due(parameters())] == [1, 2, 3]

    def test_a_command_is_queued_once(self) -> None:
        queue, write = TransferQueue(), command(1, KIB)
        queue.add(write)
        queue.add(write)
        assert len([*queue.due(parameters(KIB, 8))]) == 1

    def test_tags_are_never_the_reserved_one(self) -> None:
        queue = TransferQueue()
        queue._next_ttt = RESERVED_TAG - 1
        assert [queue.new_ttt(), queue.new_ttt()] == [RESERVED_TAG - 1, 0]

    def test_every_r2t_has_a_tag_of_its_own(self) -> None:
        queue = TransferQueue()
        for itt in range(5):
            queue.add(command(itt, 4 * KIB))
        tags = [r2t.ttt for r2t in queue.due(parameters(KIB, 4))]
        assert len(set(tags)) == len(tags) == 20

    def test_what_is_under_way_is_bounded(self) -> None:
        queue, terms = TransferQueue(), parameters(SOLICITED_LENGTH_MAX // 4, 4)
        writes = [command(itt, SOLICITED_LENGTH_MAX) for itt in (1, 2)]
        for write in writes:
            queue.add(write)
        first = next_sequences(queue, terms)
        assert sum(end - start for _, start, end in first) == SOLICITED_LENGTH_MAX
        assert next_sequences(queue, terms) == []
        send(queue, writes[0], first[0], SOLICITED_LENGTH_MAX)
        (more,) = queue.due(terms)
        assert more.itt == 2

    def test_what_ends_makes_room(self) -> None:
        queue, terms = TransferQueue(), parameters(SOLICITED_LENGTH_MAX)
        ended, waiting = (command(itt, SOLICITED_LENGTH_MAX) for itt in (1, 2))
        queue.add(ended)
        queue.add(waiting)
        assert [r2t.itt for r2t in queue.due(terms)] == [1]
        queue.remove(ended)
        assert [r2t.itt for r2t in queue.due(terms)] == [2]

    def test_what_ends_while_it_waits_is_never_asked_for(self) -> None:
        queue = TransferQueue()
        ended, other = command(1, KIB), command(2, KIB)
        queue.add(ended)
        queue.add(other)
        queue.remove(ended)
        assert [r2t.itt for r2t in queue.due(parameters())] == [2]

    def test_an_r2t_names_its_command(self) -> None:
        queue, write = TransferQueue(), command(7, 3 * KIB, 512)
        write.lun = 0x0003000000000000
        queue.add(write)
        first, second = queue.due(parameters(2 * KIB, 2))
        assert (first.itt, first.lun, first.r2t_sn) == (7, write.lun, 0)
        assert (first.buffer_offset, first.desired_length) == (512, 2 * KIB)
        assert (second.r2t_sn, second.buffer_offset, second.desired_length) == (1, 2560, 512)


@pytest.mark.parametrize(
    ("flags", "is_read", "is_write", "attribute"),
    [
        (0x80, False, False, 0),
        (0xC1, True, False, 1),
        (0xA2, False, True, 2),
        (0xE7, True, True, 7),
    ],
)
def test_a_commands_flags(flags: int, is_read: bool, is_write: bool, attribute: int) -> None:
    subject = Command(1, 0, bytes(16), flags, 0, 1)
    assert (subject.is_read, subject.is_write, subject.attribute) == (is_read, is_write, attribute)


@pytest.mark.parametrize(
    ("sense", "key", "code"),
    [
        (UNEXPECTED_UNSOLICITED_DATA, 0x0B, (0x0C, 0x0C)),
        (INCORRECT_AMOUNT_OF_DATA, 0x0B, (0x0C, 0x0D)),
        (PROTOCOL_SERVICE_CRC_ERROR, 0x0B, (0x47, 0x05)),
        (INVALID_FIELD_IN_COMMAND_IU, 0x05, (0x0E, 0x03)),
    ],
)
def test_the_transports_own_sense_data(sense: bytes, key: int, code: tuple[int, int]) -> None:
    """Section 11.4.7.2, in the fixed format of SPC-5 clause 4.4.3."""
    assert len(sense) == 18
    assert sense[0] == 0x70
    assert sense[2] == key
    assert sense[7] == len(sense) - 8
    assert (sense[12], sense[13]) == code
