"""Checks of the fight for a disk: the dead lose it, the living keep it, and there is one winner.

The roles are those of Windows: the owner defends the disk by looking at the registrations every few
seconds; a challenger registers, waits for longer than that, and preempts the owner's key if its own
registration is still there.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ..client import CommandFailed, Status
from . import pr
from .gates import free_disk, second_paths, unprotected
from .model import Area, Check, Finding, Importance, Observation, Skipped
from .nodes import Nexus, Node
from .pr import WE_RO
from .reservations import expect_fenced, expect_writable
from .rig import Rig
from .wording import describe_key

# Windows' defender looks every 3 s, its challenger waits for 7 s: two looks in each wait.
_DEFENCES = 2


@dataclass(frozen=True, slots=True)
class Contender:
    """A nexus that fights, and its key. It fights with nobody but the nodes of `rig`."""

    rig: Rig
    nexus: Nexus
    key: int

    @classmethod
    def of(cls, rig: Rig, node: Node) -> "Contender":
        """A node on its usual nexus."""
        return cls(rig, node.nexus, node.key)

    async def challenge(self, wait: Callable[[], Awaitable[None]]) -> bool:
        """Try to take the disk from its owner; whether it was won. Raises Finding."""
        await pr.register(self.nexus, self.key)
        owner = await pr.read_reservation(self.nexus)
        await wait()
        return await self.grab() if owner is None else await self.attack(owner.key)

    async def attack(self, owner_key: int) -> bool:
        """PREEMPT; whether it was done. Raises Finding, Skipped."""
        if not self.rig.is_own(owner_key):
            raise Skipped(f"others own the disk: {describe_key(owner_key)}", prevented=True)
        pending = self.nexus.reservations.preempt(self.key, owner_key, WE_RO)
        return await _succeeds(self.nexus, "PREEMPT", pending)

    async def grab(self) -> bool:
        """RESERVE; whether it was done. Raises Finding."""
        pending = self.nexus.reservations.reserve(self.key, WE_RO)
        return await _succeeds(self.nexus, "RESERVE", pending)

    async def defend(self) -> None:
        """Drive away the other nodes that are registered. Raises Finding."""
        _, keys = await pr.read_keys(self.nexus)
        for key in sorted({*filter(self.rig.is_own, keys)} - {self.key}):
            await pr.preempt(self.nexus, self.key, key)


async def _succeeds(nexus: Nexus, what: str, pending: Awaitable[None]) -> bool:
    """Whether a request was GOOD; RESERVATION CONFLICT says that the fight is lost."""
    try:
        await pending
    except CommandFailed as error:
        if error.result.status == Status.RESERVATION_CONFLICT:
            return False
        seen = f"{what} by {nexus}: {error.result}"
        raise Finding(seen, "GOOD for the winner, RESERVATION CONFLICT for the others") from None
    return True


async def dead_defender(rig: Rig) -> Observation:
    """The owner's power is pulled; the challenger waits, preempts, and owns the disk."""
    owner, challenger = (Contender.of(rig, node) for node in rig.nodes[:2])
    await pr.hold(owner.nexus, owner.key)
    begun_s = time.monotonic()
    await rig.lose(owner.nexus)
    await pr.expect_holder(challenger.nexus, owner.key)
    wait_s = rig.options.challenge_wait_s
    if not await challenger.challenge(partial(asyncio.sleep, wait_s)):
        raise Finding("PREEMPT of a dead owner: RESERVATION CONFLICT", "GOOD: it cannot defend")
    gap_s = time.monotonic() - begun_s
    await pr.expect_holder(challenger.nexus, challenger.key)
    await expect_writable(rig, challenger.nexus)
    await owner.nexus.connect()
    await expect_fenced(rig, owner.nexus)
    await pr.register(owner.nexus, owner.key)
    await expect_writable(rig, owner.nexus)
    await pr.expect_holder(owner.nexus, challenger.key)
    seen = f"taken over {gap_s:.2f} s after the loss, {wait_s:g} s of which were the wait"
    return Observation(seen, {"failover_s": gap_s, "challenge_wait_s": wait_s})


async def living_defender(rig: Rig) -> str:
    """All the other nodes challenge an owner that is alive: it drives them away in time."""
    owner, *challengers = (Contender.of(rig, node) for node in rig.nodes)
    await pr.hold(owner.nexus, owner.key)
    for challenger in challengers:
        if await challenger.challenge(partial(_wait_while_defended, rig, owner)):
            raise Finding(f"{challenger.nexus} took the disk", "the living owner keeps it")
        await pr.expect_holder(challenger.nexus, owner.key)
        await pr.expect_keys(challenger.nexus, owner.key)
        await expect_fenced(rig, challenger.nexus)
    await expect_writable(rig, owner.nexus)
    await pr.expect_attentions(owner.nexus)
    return f"{len(challengers)} challengers were refused, one after the other"


async def _wait_while_defended(rig: Rig, owner: Contender) -> None:
    for _ in range(_DEFENCES):
        await asyncio.sleep(rig.options.challenge_wait_s / _DEFENCES)
        await owner.defend()


async def one_after_the_other(rig: Rig) -> str:
    """Every node becomes the owner in its turn, when the one before it dies."""
    nodes = [Contender.of(rig, node) for node in rig.nodes]
    wait = partial(asyncio.sleep, rig.options.challenge_wait_s)
    await pr.hold(nodes[0].nexus, nodes[0].key)
    for owner, heir in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
        await rig.lose(owner.nexus)
        if not heir.nexus.connected:
            await heir.nexus.connect()
        await pr.expect_holder(heir.nexus, owner.key)
        if not await heir.challenge(wait):
            raise Finding(f"{heir.nexus} could not take over", "GOOD: the owner is dead")
        await pr.expect_holder(heir.nexus, heir.key)
        await pr.expect_keys(heir.nexus, heir.key)
        await expect_writable(rig, heir.nexus)
    return f"{len(nodes)} failovers, from node to node and back to the first"


async def all_at_once(rig: Rig) -> str:
    """All nodes want a disk that nobody owns: one gets it."""
    contenders = [Contender.of(rig, node) for node in rig.nodes]
    for contender in contenders:
        await pr.register(contender.nexus, contender.key)
    winners = []
    for turn in range(rig.options.rounds):
        contenders = _next_order(contenders, turn)
        won = await asyncio.gather(*(contender.grab() for contender in contenders))
        winner = await _expect_one_winner(contenders, won)
        winners.append(winner)
        await pr.release(winner.nexus, winner.key)
    return f"{len(winners)} rounds of {len(contenders)} nodes, won by {_names(winners)}"


async def simultaneous_failover(rig: Rig) -> str:
    """The owner dies and all nodes preempt its key at once: one gets the disk."""
    contenders = [Contender.of(rig, node) for node in rig.nodes]
    owner = Contender(rig, rig.nodes[0].nexuses[1], rig.new_key())
    winners = []
    for turn in range(rig.options.rounds):
        contenders = _next_order(contenders, turn)
        if not owner.nexus.connected:
            await owner.nexus.connect()
        await pr.hold(owner.nexus, owner.key)
        for contender in contenders:
            await pr.register(contender.nexus, contender.key)
        owner.nexus.drop()
        won = await asyncio.gather(*(contender.attack(owner.key) for contender in contenders))
        winner = await _expect_one_winner(contenders, won)
        await pr.expect_keys(winner.nexus, *(contender.key for contender in contenders))
        winners.append(winner)
        await pr.release(winner.nexus, winner.key)
    return f"{len(winners)} rounds of {len(contenders)} nodes, won by {_names(winners)}"


def _next_order(contenders: list[Contender], turn: int) -> list[Contender]:
    """Another one is asked first in each round: who sends first mostly wins."""
    return contenders[1:] + contenders[:1] if turn else contenders


async def _expect_one_winner(contenders: Sequence[Contender], won: Sequence[bool]) -> Contender:
    winners = [contender for contender, mine in zip(contenders, won, strict=True) if mine]
    if len(winners) != 1:
        raise Finding(f"{_names(winners)} won at once", "exactly one winner")
    for contender in contenders:
        found = await pr.read_reservation(contender.nexus)
        if found is None or found.key != winners[0].key:
            holder = "nobody" if found is None else describe_key(found.key)
            raise Finding(
                f"{winners[0].nexus} won, {contender.nexus} reads {holder}",
                f"{describe_key(winners[0].key)}, the winner's key",
            )
    return winners[0]


def _names(contenders: Sequence[Contender]) -> str:
    return ", ".join(str(contender.nexus) for contender in contenders) or "nobody"


CHECKS = (
    Check(
        "dead-defender",
        Area.ARBITRATION,
        "A dead owner loses the disk",
        "the challenger registers, waits, preempts and writes; the dead node comes back refused",
        "SPC-5 clause 5.14.11.4",
        Importance.REQUIRED,
        dead_defender,
        (free_disk, unprotected),
        windows="Validate Disk Failover",
    ),
    Check(
        "living-defender",
        Area.ARBITRATION,
        "A living owner keeps the disk",
        "challengers whose registration the owner removes in time give up",
        "SPC-5 clause 5.14.11.4",
        Importance.REQUIRED,
        living_defender,
        (free_disk, unprotected),
        windows="Validate Disk Arbitration",
    ),
    Check(
        "each-node",
        Area.ARBITRATION,
        "Every node can become the owner",
        "the disk fails over from node to node and back",
        "SPC-5 clause 5.14.11.4",
        Importance.REQUIRED,
        one_after_the_other,
        (free_disk, unprotected),
        windows="Validate Disk Arbitration",
    ),
    Check(
        "all-at-once",
        Area.ARBITRATION,
        "All nodes arbitrate at once: one wins",
        "RESERVE is atomic between the nodes",
        "SPC-5 clause 5.14.9",
        Importance.REQUIRED,
        all_at_once,
        (free_disk,),
        windows="Validate Multiple Arbitration",
    ),
    Check(
        "simultaneous-failover",
        Area.ARBITRATION,
        "All nodes take over at once: one wins",
        "PREEMPT is atomic between the nodes: the second finds no key to preempt",
        "SPC-5 clause 5.14.11.4",
        Importance.REQUIRED,
        simultaneous_failover,
        (free_disk, second_paths),
        windows="Validate Simultaneous Failover",
    ),
)
