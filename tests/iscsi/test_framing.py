"""Received bytes to PDUs: however they are cut, padded and digested, and what memory that holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.iscsi.constants import BHS_LENGTH
from pyiscsi_target.iscsi.framing import (
    BAD_DIGEST,
    RECEIVE_BUFFER_LENGTH,
    SMALL_REST_LENGTH,
    BufferPool,
    Framer,
)
from pyiscsi_target.iscsi.pdu import NopOut
from tests.support.memory import frame

MAX_SEGMENT = 1 << 20
ALL = 1 << 30
SMALL_BUFFER = 2 * SMALL_REST_LENGTH  # a rest of any size must leave room for more


@dataclass(frozen=True)
class Framed:
    """A PDU as it was framed; `data` None: its digest was wrong."""

    header: bytes
    data: bytes | None
    ahs: bytes


class CountingPool(BufferPool):
    """A pool that knows how many of its buffers are out."""

    def __init__(self, size_bytes: int, keep: int = 8) -> None:
        super().__init__(size_bytes, keep)
        self.out = 0

    def take(self) -> memoryview:
        self.out += 1
        return super().take()

    def give(self, buffer: memoryview) -> None:
        self.out -= 1
        super().give(buffer)


class Receiver:
    """A framer fed as a connection feeds it: rounds of writable, received, frames, settle."""

    def __init__(
        self,
        pool: BufferPool | None = None,
        *,
        max_segment: int = MAX_SEGMENT,
        header_digest: bool = False,
        data_digest: bool = False,
    ) -> None:
        self.pool = pool or CountingPool(RECEIVE_BUFFER_LENGTH)
        self.framer = Framer(self.pool, max_segment)
        self.framer.header_digest = header_digest
        self.framer.data_digest = data_digest

    def feed(self, stream: bytes, chunk: int = 1 << 30, limit: int = ALL) -> list[Framed]:
        """All that is framed of `stream`, at most `chunk` bytes a round."""
        framed: list[Framed] = []
        view = memoryview(stream)
        while len(view) and self.framer.broken is None:
            room = self.framer.writable()
            assert len(room) > 0
            length = min(len(room), len(view), chunk)
            room[:length] = view[:length]
            view = view[length:]
            self.framer.received(length)
            framed += self._frames(limit)
            self.framer.settle()
        return framed

    def _frames(self, limit: int) -> list[Framed]:
        framed: list[Framed] = []
        while frames := self.framer.frames(limit):
            assert len(frames) <= limit
            memory = self.framer.memory
            for position, data, ahs in frames:
                header = bytes(memory[position : position + BHS_LENGTH])
                content = None if data is BAD_DIGEST else b"" if data is None else bytes(data)
                framed.append(Framed(header, content, ahs))
        return framed


@dataclass(frozen=True)
class Sent:
    """A PDU to be framed."""

    tag: int
    data: bytes = b""
    ahs: bytes = b""

    def stream(self, *, header_digest: bool = False, data_digest: bool = False) -> bytes:
        pdu = NopOut(itt=self.tag)
        return frame(pdu, self.data, self.ahs, header_digest=header_digest, data_digest=data_digest)

    def framed(self) -> Framed:
        pdu = NopOut(itt=self.tag)
        pdu.lengths = len(self.ahs) // 4 << 24 | len(self.data)
        return Framed(pdu.pack(), self.data, self.ahs)


sent_pdus = st.builds(
    Sent,
    st.integers(0, 0xFFFFFFFF),
    st.binary(max_size=70),
    st.integers(0, 3).flatmap(lambda words: st.binary(min_size=4 * words, max_size=4 * words)),
)
DIGESTS = [
    {"header_digest": header, "data_digest": data}
    for header in (False, True)
    for data in (False, True)
]
EITHER_DIGEST = pytest.mark.parametrize("digests", DIGESTS, ids=str)


def stream_of(sent: Sequence[Sent], digests: dict[str, bool]) -> bytes:
    return b"".join(pdu.stream(**digests) for pdu in sent)


class TestDelivery:
    @given(
        sent=st.lists(sent_pdus, max_size=8),
        digests=st.sampled_from(DIGESTS),
        chunk=st.integers(1, 200),
        limit=st.integers(1, 4),
    )
    def test_any_cut_gives_the_same(
        self, sent: list[Sent], digests: dict[str, bool], chunk: int, limit: int
    ) -> None:
        receiver = Receiver(None, **digests)
        framed = receiver.feed(stream_of(sent, digests), chunk, limit)
        assert framed == [pdu.framed() for pdu in sent]
        assert receiver.framer.broken is None

    @EITHER_DIGEST
    @pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 511, 512])
    def test_byte_at_a_time(self, digests: dict[str, bool], length: int) -> None:
        sent = [Sent(1, b"d" * length), Sent(2), Sent(3, b"x", b"ahs.")]
        stream = stream_of(sent, digests)
        assert Receiver(None, **digests).feed(stream, 1) == [pdu.framed() for pdu in sent]

    @pytest.mark.parametrize("words", [1, 12, 255])
    @EITHER_DIGEST
    def test_additional_headers(self, words: int, digests: dict[str, bool]) -> None:
        sent = [Sent(1, b"data", bytes(range(4)) * words), Sent(2)]
        assert Receiver(None, **digests).feed(stream_of(sent, digests)) == [
            pdu.framed() for pdu in sent
        ]

    def test_an_unfinished_pdu_is_not_framed(self) -> None:
        stream = Sent(1, b"12345").stream(data_digest=True)
        for length in range(len(stream)):
            assert Receiver(data_digest=True).feed(stream[:length]) == []

    def test_the_limit_holds_back_what_follows(self) -> None:
        """As login needs it: the digests of the next PDU depend on this one."""
        receiver = Receiver()
        room = receiver.framer.writable()
        plain, digested = Sent(1), Sent(2, b"data")
        stream = plain.stream() + digested.stream(header_digest=True, data_digest=True)
        room[: len(stream)] = stream
        receiver.framer.received(len(stream))
        assert len(receiver.framer.frames(1)) == 1
        receiver.framer.header_digest = receiver.framer.data_digest = True
        assert receiver._frames(1) == [digested.framed()]


class TestDigests:
    @given(
        sent=st.builds(Sent, st.just(7), st.binary(max_size=40), st.sampled_from([b"", b"ahs."])),
        data=st.data(),
    )
    def test_a_wrong_header_breaks_the_stream(self, sent: Sent, data: st.DataObject) -> None:
        stream = bytearray(sent.stream(header_digest=True))
        covered_length = BHS_LENGTH + len(sent.ahs) + 4
        # Bits of the length fields change how much is awaited: those are another test's.
        bit = data.draw(st.integers(8 * 8, covered_length * 8 - 1))
        stream[bit // 8] ^= 1 << bit % 8
        receiver = Receiver(header_digest=True)
        assert receiver.feed(bytes(stream)) == []
        assert "header digest" in str(receiver.framer.broken)

    @given(length=st.integers(1, 40), data=st.data())
    def test_wrong_data_is_marked_and_the_next_pdu_read(
        self, length: int, data: st.DataObject
    ) -> None:
        stream = bytearray(Sent(1, b"d" * length).stream(data_digest=True))
        bit = data.draw(st.integers(BHS_LENGTH * 8, len(stream) * 8 - 1))
        stream[bit // 8] ^= 1 << bit % 8
        first, second = Receiver(data_digest=True).feed(
            bytes(stream) + Sent(2, b"whole").stream(data_digest=True)
        )
        assert first.data is None
        assert second.data == b"whole"

    def test_nothing_is_digested_where_there_is_no_data(self) -> None:
        stream = Sent(1).stream(data_digest=True) * 2
        assert len(stream) == 2 * BHS_LENGTH
        assert Receiver(data_digest=True).feed(stream) == [Sent(1).framed()] * 2


class TestLimits:
    @EITHER_DIGEST
    @pytest.mark.parametrize("length", [512, 513, 600, (1 << 24) - 1])
    def test_the_declared_segment_length(self, digests: dict[str, bool], length: int) -> None:
        receiver = Receiver(None, max_segment=512, **digests)
        framed = receiver.feed(Sent(1, bytes(length)).stream(**digests))
        if length == 512:
            assert framed == [Sent(1, bytes(512)).framed()]
        else:
            assert framed == []
            assert "DataSegmentLength" in str(receiver.framer.broken)

    def test_it_is_noticed_before_the_data_comes(self) -> None:
        receiver = Receiver(max_segment=512)
        receiver.feed(Sent(1, bytes(513)).stream()[:BHS_LENGTH])
        assert receiver.framer.broken is not None

    def test_what_came_before_is_framed(self) -> None:
        receiver = Receiver(max_segment=512)
        stream = Sent(1, bytes(512)).stream() + Sent(2, bytes(513)).stream()
        assert receiver.feed(stream) == [Sent(1, bytes(512)).framed()]
        assert receiver.framer.broken is not None

    def test_nothing_is_framed_after_a_break(self) -> None:
        receiver = Receiver(max_segment=512)
        receiver.feed(Sent(1, bytes(513)).stream())
        assert receiver.framer.frames(ALL) == []


class TestMemory:
    """A buffer is held only while a PDU is unfinished, and only for a rest that is not small."""

    def test_an_idle_connection_holds_none(self) -> None:
        pool = CountingPool(RECEIVE_BUFFER_LENGTH)
        receiver = Receiver(pool)
        assert pool.out == 0
        receiver.feed(Sent(1, b"data").stream())
        assert pool.out == 0
        assert len(receiver.framer.memory) == 0

    @pytest.mark.parametrize(
        ("rest", "held"),
        [
            (0, 0),
            (1, 0),
            (BHS_LENGTH - 1, 0),
            (BHS_LENGTH, 0),
            (SMALL_REST_LENGTH, 0),
            (SMALL_REST_LENGTH + 1, 1),
            (RECEIVE_BUFFER_LENGTH - 2 * BHS_LENGTH, 1),
        ],
    )
    def test_rests_of_each_size(self, rest: int, held: int) -> None:
        pool = CountingPool(RECEIVE_BUFFER_LENGTH)
        receiver = Receiver(pool)
        first, second = Sent(1), Sent(2, b"d" * (RECEIVE_BUFFER_LENGTH - 2 * BHS_LENGTH))
        stream = first.stream() + second.stream()
        assert receiver.feed(stream[: BHS_LENGTH + rest]) == [first.framed()]
        assert pool.out == held
        assert receiver.feed(stream[BHS_LENGTH + rest :]) == [second.framed()]
        assert pool.out == 0

    @pytest.mark.parametrize("length", [SMALL_BUFFER - 100, SMALL_BUFFER, 10 * SMALL_BUFFER])
    @EITHER_DIGEST
    def test_a_pdu_longer_than_a_buffer(self, length: int, digests: dict[str, bool]) -> None:
        pool = CountingPool(SMALL_BUFFER)
        sent = [Sent(1, b"before"), Sent(2, b"d" * length), Sent(3, b"after")]
        assert Receiver(pool, **digests).feed(stream_of(sent, digests), 3000) == [
            pdu.framed() for pdu in sent
        ]

    def test_buffers_are_used_again(self) -> None:
        pool = BufferPool(SMALL_BUFFER)
        receiver = Receiver(pool)
        receiver.feed(Sent(1).stream())
        used = pool.take()
        pool.give(used)
        assert receiver.framer.writable().obj is used.obj

    def test_what_was_copied_out_survives_another_connections_use(self) -> None:
        pool = BufferPool(SMALL_BUFFER)
        one, other = Receiver(pool), Receiver(pool)
        stream = Sent(1, b"one's data").stream()
        one.feed(stream[:50])
        other.feed(Sent(2, b"x" * 900).stream())
        assert one.feed(stream[50:]) == [Sent(1, b"one's data").framed()]

    def test_a_broken_stream_holds_no_memory(self) -> None:
        receiver = Receiver(CountingPool(RECEIVE_BUFFER_LENGTH), max_segment=8192)
        huge = NopOut(lengths=0xFFFFFF).pack() + bytes(2 * SMALL_REST_LENGTH)
        receiver.feed(huge)
        assert receiver.framer.broken is not None
        assert len(receiver.framer.memory) <= RECEIVE_BUFFER_LENGTH


class TestPool:
    def test_the_last_given_is_the_first_taken(self) -> None:
        pool = BufferPool(64)
        first, second = pool.take(), pool.take()
        assert len(first) == len(second) == 64
        assert first.obj is not second.obj
        pool.give(first)
        pool.give(second)
        assert pool.take() is second
        assert pool.take() is first

    def test_it_keeps_only_so_many(self) -> None:
        pool = BufferPool(64, keep=1)
        kept, left = pool.take(), pool.take()
        pool.give(kept)
        pool.give(left)
        assert pool.take() is kept
        assert pool.take() is not left

    def test_it_keeps_only_its_own_size(self) -> None:
        pool = BufferPool(64)
        other = memoryview(bytearray(65))
        pool.give(other)
        assert pool.take() is not other
