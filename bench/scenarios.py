"""What is measured and what is to be reached: the one table of loads, and the single figures."""

import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from bench.clients import (
    GENERATOR_ENV,
    Client,
    Load,
    generator_command,
    generator_result,
    own_client,
    perf_random,
    perf_sequential,
    qemu_read,
    qemu_write,
)
from bench.generator import RUNNING
from bench.meter import Meter, resident_bytes
from bench.subjects import Subject
from tests.support.images import GIB, KIB, MIB
from tests.support.process import child
from tests.support.raw_initiator import RawInitiator, raw_session, read_16
from tests.support.server import TARGET


@dataclass(frozen=True)
class Scenario:
    """A load that two servers bear in turn; `goal` is the least median ratio, None: for show."""

    name: str
    title: str
    client: Client
    block_bytes: int
    depth: int
    goal: float | None

    def load(self, duration_s: float, pin: str) -> Load:
        return Load(self.block_bytes, self.depth, duration_s, pin)


SCENARIOS = (
    Scenario("read-4k-q32", "4 KiB random read, 32 in flight", perf_random, 4 * KIB, 32, 2.5),
    Scenario("read-4k-q1", "4 KiB random read, 1 in flight", perf_random, 4 * KIB, 1, 1.0),
    Scenario("read-64k-q16", "64 KiB read, 16 in flight", perf_sequential, 64 * KIB, 16, 1.7),
    Scenario("read-256k-q8", "256 KiB read, 8 in flight", perf_sequential, 256 * KIB, 8, 1.4),
    Scenario("read-1m-q8", "1 MiB read, 8 in flight", qemu_read, MIB, 8, None),
    Scenario("write-4k-q32", "4 KiB write, 32 in flight", qemu_write, 4 * KIB, 32, 1.7),
    Scenario("write-64k-q16", "64 KiB write, 16 in flight", qemu_write, 64 * KIB, 16, 3.0),
    Scenario("write-1m-q8", "1 MiB write, 8 in flight", qemu_write, MIB, 8, 2.0),
)


@dataclass(frozen=True)
class Sample:
    """One run of one load against one server."""

    operations_per_s: float
    cpu_s_per_gib: float
    cpu_s: float
    peak_bytes: int


def measure(subject: Subject, client: Client, load: Load, disk: int = 0) -> Sample:
    subject.settle()
    with Meter(subject.pid) as meter:
        moved = client(subject.url(disk), load)
    cost = meter.cost
    per_gib = cost.cpu_s / max(moved.total_bytes / GIB, 1e-9)
    return Sample(moved.operations_per_s, per_gib, cost.cpu_s, cost.peak_bytes)


# Figures of one server by itself


@dataclass(frozen=True)
class Figure:
    """A single number with its goal; `holds` is None where there is none."""

    title: str
    value: str
    goal: str = ""
    holds: bool | None = None


@dataclass(frozen=True)
class Terms:
    """How long and how often to measure."""

    rounds: int
    duration_s: float
    client_pin: str

    def load(self, block_bytes: int, depth: int) -> Load:
        return Load(block_bytes, depth, self.duration_s, self.client_pin)


MAX_DIGEST_RATIO = 1.4


def digests(subject: Subject, terms: Terms) -> Iterator[Figure]:
    """The server's CPU time per byte with both digests, against its own without."""
    for verb, options in (("read", ()), ("write", ("--write",))):
        load = terms.load(64 * KIB, 8)
        plain, checked = own_client(*options), own_client(*options, "--digests")
        pairs = [
            (measure(subject, plain, load), measure(subject, checked, load))
            for _ in range(terms.rounds)
        ]
        ratio = statistics.median(b.cpu_s_per_gib / a.cpu_s_per_gib for a, b in pairs)
        sides = zip(*pairs, strict=True)
        seconds = [statistics.median(s.cpu_s_per_gib for s in side) for side in sides]
        yield Figure(
            f"CPU with both digests, 64 KiB {verb}, 8 in flight, to without",
            f"{ratio:.2f}x ({seconds[1]:.3f} to {seconds[0]:.3f} s/GiB)",
            f"<= {MAX_DIGEST_RATIO}x",
            ratio <= MAX_DIGEST_RATIO,
        )


def _share(subject: Subject, load: Load, other: Callable[[], float]) -> float:
    """What `other` moves, to the load alone just before and just after it."""
    before = measure(subject, perf_random, load).operations_per_s
    moved = other()
    after = measure(subject, perf_random, load).operations_per_s
    return moved / statistics.mean((before, after))


def _together(subject: Subject, load: Load) -> float:
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda disk: perf_random(subject.url(disk), load), (0, 1))
        return sum(moved.operations_per_s for moved in runs)


def two_sessions(subject: Subject, terms: Terms) -> Iterator[Figure]:
    """Two sessions on two LUNs must not get less together than one gets alone.

    With 32 in flight one session alone keeps a processor busy with the server and another with the
    client, so on two processors there is nothing left to win; fewer in flight show what is gained.
    """
    for depth in (1, 8, 32):
        load = terms.load(4 * KIB, depth)
        shares = [
            _share(subject, load, partial(_together, subject, load)) for _ in range(terms.rounds)
        ]
        ratio = statistics.median(shares)
        title = (
            "two sessions on two LUNs together to one alone, "
            f"4 KiB random read, {depth} in flight each"
        )
        yield Figure(title, f"{ratio:.2f}x", ">= 1.0x", ratio >= 1.0)


SESSIONS = 200
MAX_SESSION_BYTES = 100 * KIB


def _open_sessions(subject: Subject, stack: ExitStack) -> list[RawInitiator]:
    sessions = []
    for number in range(SESSIONS):
        session = stack.enter_context(RawInitiator(subject.server.address))
        isid = b"\x80\x00\x00\x00" + number.to_bytes(2)
        session.login(TARGET, initiator=f"iqn.2026-11.example.test:idle{number}", isid=isid)
        session.command(bytes(6), lun=subject.first_lun)
        sessions.append(session)
    return sessions


def idle_sessions(subject: Subject, terms: Terms) -> Iterator[Figure]:
    """Resident memory that sessions add: after login, and again idle after a read of each.

    On a server that has just started, whose heap has no room left from earlier loads.
    """
    if subject.fresh is None:
        return
    with subject.fresh() as bare, ExitStack() as stack:
        with raw_session(bare.server.address, TARGET) as first:
            first.command(bytes(6))
        before = resident_bytes(bare.pid)
        sessions = _open_sessions(bare, stack)
        logged_in = (resident_bytes(bare.pid) - before) / SESSIONS
        for session in sessions:
            session.command(read_16(0, 128), lun=bare.first_lun, read_bytes=64 * KIB)
        worked = (resident_bytes(bare.pid) - before) / SESSIONS
        for session in sessions:
            session.logout()
    for when, size in (("after login", logged_in), ("after a 64 KiB read each", worked)):
        yield Figure(
            f"memory of each of {SESSIONS} idle sessions, {when}",
            f"{size / KIB:.1f} KiB",
            f"< {MAX_SESSION_BYTES // KIB} KiB",
            size < MAX_SESSION_BYTES,
        )


MIN_SHARE_BESIDE_SLOW = 0.9


def _beside_slow(subject: Subject, load: Load, slow_url: str) -> float:
    """The load while a second client, already at work, waits for the slow disk."""
    slow_load = Load(4 * KIB, 8, load.duration_s + 1, load.pin)
    with child(generator_command(slow_url, slow_load), env=GENERATOR_ENV, merge=True) as slow:
        slow.wait_for_line(RUNNING)
        moved = perf_random(subject.url(), load)
        slow.wait()
        if generator_result(slow.output).operations_per_s > 1000:
            raise AssertionError("the slow disk is not slow")
    return moved.operations_per_s


def slow_neighbour(subject: Subject, terms: Terms) -> Iterator[Figure]:
    """What a LUN keeps of its throughput while every read of another one takes 50 ms."""
    if subject.slow_lun is None:
        return
    load = terms.load(4 * KIB, 32)
    slow_url = subject.server.url(subject.slow_lun)
    shares = [
        _share(subject, load, lambda: _beside_slow(subject, load, slow_url))
        for _ in range(terms.rounds)
    ]
    ratio = statistics.median(shares)
    yield Figure(
        "4 KiB random read, 32 in flight, beside a LUN with 50 ms a read, to alone",
        f"{ratio:.2f}x",
        f">= {MIN_SHARE_BESIDE_SLOW}x",
        ratio >= MIN_SHARE_BESIDE_SLOW,
    )


FIGURES: dict[str, Callable[[Subject, Terms], Iterator[Figure]]] = {
    "digests": digests,
    "two-sessions": two_sessions,
    "idle-sessions": idle_sessions,
    "slow-neighbour": slow_neighbour,
}
