"""The rig of a validation: the nodes, the disk that they share, and what has to be put back.

Makes and ends sessions, keeps count of whose reservation keys are whose, and of what the scratch
blocks held. Knows no check.
"""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass

from ..client import (
    ClientError,
    CommandFailed,
    ConnectionLost,
    Credentials,
    Initiator,
    Portal,
    TargetUrl,
)
from . import pr, requests
from .model import Finding, NodeFacts, Skipped
from .nodes import Nexus, Node, isid_of
from .requests import good
from .wording import describe_keys

MIB = 1 << 20
NODES_MINIMUM, NODES_MAXIMUM, NODES_DEFAULT = 2, 8, 3
SCRATCH_BLOCKS = 2
_PROBE_PATH = 200
# Keys of this program end in this: what one run left behind, another may tell from a cluster's.
KEY_MARK = int.from_bytes(b"pyVa", "big")
_NAME_PATTERN = "iqn.2026-11.org.pyiscsi-target:validate-node-{n}"


@dataclass(frozen=True, slots=True)
class Options:
    """How to validate. Times in seconds.

    `initiator_names` are one for each node. `idle`: no host uses the disk, though it holds data.
    `challenge_wait_s` is how long a challenger gives the
    defender (Windows: 7), `settle_s` how long the target gets to notice a lost connection,
    `rounds` how often a race is run.
    """

    url: TargetUrl
    initiator_names: tuple[str, ...] = ()
    credentials: Credentials | None = None
    idle: bool = False
    allow_writes: bool = False
    challenge_wait_s: float = 1.0
    settle_s: float = 0.2
    timeout_s: float = 10.0
    check_timeout_s: float = 120.0
    rounds: int = 5
    latency_samples: int = 500


def node_names(count: int, given: Sequence[str] = ()) -> tuple[str, ...]:
    """An iSCSI name for each node.

    `given` is empty (names of this program), one name (of all nodes, told apart by ISID, or with
    `{n}` in it for the node's number), or as many names as nodes. Raises ValueError.
    """
    if len(given) == count:
        return tuple(given)
    if len(given) > 1:
        raise ValueError(f"{len(given)} initiator names for {count} nodes")
    pattern = given[0] if given else _NAME_PATTERN
    return tuple(pattern.replace("{n}", str(number)) for number in range(1, count + 1))


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk that is validated: its size, and where the two scratch blocks are.

    These are the last blocks of the first MiB: partitions begin there or later, and partition
    tables and boot loaders, which do lie below, do not reach that far.
    """

    block_size: int
    block_count: int
    thin: bool
    reads_zeroes: bool

    @property
    def scratch_lba(self) -> int:
        """The first scratch block."""
        return max(0, min(self.block_count, max(MIB // self.block_size, 2)) - SCRATCH_BLOCKS)


class Rig:
    """Nodes and disk of one validation."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._keys: set[int] = set()
        self._run = secrets.randbits(24)
        self.nodes = [
            Node(number, name, self.new_key())
            for number, name in enumerate(options.initiator_names or node_names(NODES_DEFAULT), 1)
        ]
        for node in self.nodes:
            self._add_nexus(node, options.url.portal)
        self.portals: list[Portal] = [options.url.portal]  # all that discovery tells
        self.paths = self.portals  # those of them that let a node in
        self.disks: list[int] = []
        self.disk: Disk | None = None
        self.scratch_before: bytes | None = None  # what the scratch blocks held
        self.scratch_changed = False
        self.offered: tuple[str, ...] | None = None  # the targets that discovery told
        self.gave_up = ""  # why nothing can be asked any more
        self.refused = ""  # why no node at all gets in, and what to do about it
        self.in_use = ""  # why the disk's reservations are not ours to test
        self.may_be_registered = False

    # Nodes and nexuses

    def _make_nexus(self, node: Node, portal: Portal, path: int, label: str) -> Nexus:
        isid = isid_of(node.number, path)
        initiator = Initiator(node.initiator_name, isid, self.options.credentials)
        nexus = Nexus(label, portal, self.options.url.target, initiator, self.options.timeout_s)
        if node.nexuses:
            nexus.lun = node.nexus.lun
        return nexus

    def _add_nexus(self, node: Node, portal: Portal) -> Nexus:
        path = len(node.nexuses) + 1
        label = f"{node}" if path == 1 else f"path {path} of {node}"
        nexus = self._make_nexus(node, portal, path, label)
        node.nexuses.append(nexus)
        return nexus

    def probe(self, node: Node, portal: Portal) -> Nexus:
        """A nexus for one check, which connects it and logs it out; it never registers."""
        return self._make_nexus(node, portal, _PROBE_PATH, f"{node} at {portal}")

    async def second_path(self, node: Node) -> Nexus:
        """Another nexus of a node, by another portal if there is one; it stays for later checks.

        Raises ClientError.
        """
        if len(node.nexuses) < 2:
            self._add_nexus(node, self.paths[1 % len(self.paths)])
        nexus = node.nexuses[1]
        if not nexus.connected:
            await nexus.connect()
        return nexus

    def bystander(self) -> tuple[Nexus, int]:
        """A nexus that is none of nodes 1 and 2, and a key for it; else their other path's."""
        if len(self.nodes) > 2:
            return self.nodes[2].nexus, self.nodes[2].key
        return self.nodes[0].nexuses[-1], self.new_key()

    def nexuses(self) -> Iterator[Nexus]:
        """Every nexus of every node."""
        for node in self.nodes:
            yield from node.nexuses

    @property
    def first(self) -> Nexus:
        """The usual nexus of node 1."""
        return self.nodes[0].nexus

    def use_lun(self, lun: int) -> None:
        """Send commands to this disk from now on."""
        for nexus in self.nexuses():
            nexus.lun = lun

    # Keys and registrations

    def new_key(self) -> int:
        """A reservation key that no other nexus has."""
        key = self._run << 40 | len(self._keys) + 1 << 32 | KEY_MARK
        self._keys.add(key)
        return key

    def is_own(self, key: int) -> bool:
        """Whether a key was made in this run."""
        return key in self._keys

    async def strangers(self) -> list[int]:
        """The registered keys that are not of this run. Raises Finding."""
        _, keys = await pr.read_keys(self.first)
        return [key for key in keys if not self.is_own(key)]

    async def clear(self, nexus: Nexus, key: int) -> None:
        """CLEAR, unless it would take something from others. Raises Finding, Skipped."""
        if others := await self.strangers():
            raise Skipped(f"others have registered: {describe_keys(others)}", prevented=True)
        await pr.clear(nexus, key)

    async def unregister_own_nexuses(self) -> None:
        """Unregister every nexus of ours. It cannot take away a registration of another."""
        for nexus in self.nexuses():
            if nexus.connected:
                # Whatever it answers: what counts is what is registered afterwards.
                with contextlib.suppress(CommandFailed):
                    await nexus.reservations.register_and_ignore(0)

    async def unregister_all(self) -> None:
        """Take away what this run registered, and nothing else. Raises Finding if it stays."""
        _, left = await pr.read_keys(self.first)
        if not left:
            return
        await self.unregister_own_nexuses()
        _, left = await pr.read_keys(self.first)
        if left and all(map(self.is_own, left)):
            await pr.register(self.first, self.nodes[0].key)
            await self.clear(self.first, self.nodes[0].key)
            _, left = await pr.read_keys(self.first)
        if own := [key for key in left if self.is_own(key)]:
            raise Finding(
                f"registrations that cannot be removed: {describe_keys(own)}",
                "none after unregistering and CLEAR",
            )

    # Scratch blocks

    async def read_scratch(self, nexus: Nexus) -> bytes:
        """What the scratch blocks hold. Raises Finding."""
        assert self.disk is not None
        request = requests.read(self.disk.scratch_lba, SCRATCH_BLOCKS, self.disk.block_size)
        data = (await good(nexus.send(request), f"{request.name} by {nexus}")).data
        if len(data) != request.read_length:
            raise Finding(f"{request.name}: {len(data)} bytes", f"{request.read_length} bytes")
        return bytes(data)

    async def write_scratch(self, nexus: Nexus, data: bytes, *, fua: bool = False) -> None:
        """Change the scratch blocks, whose content is kept by then. Raises Finding."""
        assert self.disk is not None
        assert self.scratch_before is not None
        self.scratch_changed = True
        request = requests.write(self.disk.scratch_lba, data, self.disk.block_size, fua=fua)
        await good(nexus.send(request), f"{request.name} by {nexus}")

    async def restore_scratch(self) -> None:
        """Put back what the scratch blocks held, on the medium. Raises Finding."""
        before = self.scratch_before
        if not self.scratch_changed or before is None:
            return
        if await self.read_scratch(self.first) != before:
            await self.write_scratch(self.first, before)
            flush = requests.synchronize_cache()
            await self.first.send(flush)  # a disk without a cache may not know the command
            if await self.read_scratch(self.first) != before:
                raise Finding("the scratch blocks do not hold what was written back", "they do")
        self.scratch_changed = False

    # Losses and the end

    async def lose(self, *nexuses: Nexus) -> None:
        """Pull the power of nodes, and let the target notice: only then it may do wrong."""
        for nexus in nexuses:
            nexus.drop()
        await asyncio.sleep(self.options.settle_s)

    def drop_all(self) -> None:
        """Cut every connection: nobody knows in which state they are."""
        for nexus in self.nexuses():
            nexus.drop()

    async def clean_up(self) -> list[str]:
        """Put everything back and log out; what could not be done, in words."""
        problems: list[str] = []
        if self.may_be_registered or self.scratch_changed:
            await self._come_back(problems)
            if self.may_be_registered:
                await _attempt("reservations", self.unregister_all(), problems)
            await _attempt("scratch blocks", self.restore_scratch(), problems)
        await asyncio.gather(*(nexus.log_out() for nexus in self.nexuses()))
        return problems

    async def _come_back(self, problems: list[str]) -> None:
        """Sessions for all nexuses: a registration can be taken away by its own nexus only."""
        lost = [nexus for nexus in self.nexuses() if not nexus.connected]
        await asyncio.gather(
            *(_attempt(f"login of {nexus}", nexus.connect(), problems) for nexus in lost)
        )

    # Facts for the report

    def node_facts(self) -> tuple[NodeFacts, ...]:
        """Who the nodes were."""
        return tuple(
            NodeFacts(
                node.number,
                node.initiator_name,
                tuple((str(nexus.portal), nexus.initiator.isid.hex()) for nexus in node.nexuses),
            )
            for node in self.nodes
        )


async def _attempt(what: str, pending: Awaitable[None], problems: list[str]) -> None:
    try:
        await pending
    except (ClientError, Finding, Skipped) as error:
        problems.append(f"{what}: {error}")


async def reach(portal: Portal, timeout_s: float) -> None:
    """See whether anybody listens at a portal. Raises ConnectionLost."""
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(portal.host, portal.port)
    except TimeoutError:
        raise ConnectionLost(portal, f"no connection within {timeout_s:g} s") from None
    except OSError as error:
        named = isinstance(error, socket.gaierror) or error.errno is None
        reason = str(error.strerror or error) if named else os.strerror(error.errno or 0)
        raise ConnectionLost(portal, reason) from None
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
