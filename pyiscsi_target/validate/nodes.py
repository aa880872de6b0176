"""The simulated nodes of a cluster, and the I_T nexuses through which they talk to the target.

A nexus outlives its sessions, as a registration does: it can lose its connection and come back with
the same name and ISID. It collects the unit attentions that it hears. Knows no check.
"""

import asyncio
from dataclasses import dataclass, field

from ..client import (
    Initiator,
    Portal,
    Reservations,
    Result,
    Session,
    Status,
    TaskAttribute,
    commands,
)
from ..iscsi.responses import Buffer
from .model import Finding
from .requests import Request
from .wording import Attention, describe_attentions

_ATTENTIONS_MAXIMUM = 16
_BUSY = frozenset({Status.BUSY, Status.TASK_SET_FULL})
_BUSY_RETRIES, _BUSY_PAUSE_S = 20, 0.1

# ISIDs of the random format (RFC 7143 section 11.12.5), always the same: what a killed run left
# registered, the next run unregisters as the same nexus.
_ISID_PREFIX = b"\x80VAL"


def isid_of(node: int, path: int) -> bytes:
    """The ISID of a node's path; both count from 1."""
    return _ISID_PREFIX + bytes([node, path])


class PatientSession(Session):
    """A session that sends a command again after a unit attention or BUSY.

    `heard` collects the attentions, in order.
    """

    heard: list[Attention]

    async def execute(
        self,
        lun: int,
        cdb: bytes,
        *,
        data_out: Buffer = b"",
        read_length: int = 0,
        attribute: int = TaskAttribute.SIMPLE,
        timeout_s: float | None = None,
    ) -> Result:
        """As `Session.execute`. Raises Finding where unit attentions never end."""
        attentions = busy = 0
        while True:
            result = await super().execute(
                lun,
                cdb,
                data_out=data_out,
                read_length=read_length,
                attribute=attribute,
                timeout_s=timeout_s,
            )
            sense = result.sense
            if sense is not None and sense.is_unit_attention:
                self.heard.append(sense.code)
                attentions += 1
                if attentions == _ATTENTIONS_MAXIMUM:
                    seen = f"one unit attention after another: {describe_attentions([sense.code])}"
                    raise Finding(seen, "each of them once")
            elif result.status in _BUSY and busy < _BUSY_RETRIES:
                busy += 1
                await asyncio.sleep(_BUSY_PAUSE_S)
            else:
                return result


class Nexus:
    """One initiator port of a node, one portal of the target, and the session between them, if any.

    `lun` is the disk that requests go to.
    """

    def __init__(
        self, label: str, portal: Portal, target: str, initiator: Initiator, timeout_s: float
    ) -> None:
        self.label = label
        self.portal = portal
        self.target = target
        self.initiator = initiator
        self.timeout_s = timeout_s
        self.lun = 0
        self._heard: list[Attention] = []
        self._session: PatientSession | None = None

    def __str__(self) -> str:
        return self.label

    @property
    def session(self) -> PatientSession:
        """The session. Raises Finding where it is gone."""
        if self._session is None or self._session.closed:
            raise Finding(f"the session of {self} ended by itself", "a session that stays")
        return self._session

    @property
    def connected(self) -> bool:
        """Whether there is a session."""
        return self._session is not None and not self._session.closed

    @property
    def reservations(self) -> Reservations:
        """The persistent reservations of the disk. Raises Finding where the session is gone."""
        return Reservations(self.session, self.lun)

    async def connect(self) -> None:
        """A new session of the nexus; one that the target still has is reinstated.

        Raises ClientError.
        """
        session = PatientSession(self.portal, self.target, self.initiator, timeout_s=self.timeout_s)
        session.heard = self._heard
        await session.reconnect()
        self._session = session

    def drop(self) -> None:
        """Cut the connection without a word: the power is pulled."""
        if self._session is not None:
            self._session.drop()
            self._session = None

    async def log_out(self) -> None:
        """End the session in order, as far as the target lets it be done."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, request: Request, *, lun: int | None = None) -> Result:
        """The result of a request, after unit attentions and BUSY. Raises ClientError, Finding."""
        return await self.session.execute(
            self.lun if lun is None else lun,
            request.cdb,
            data_out=request.data_out,
            read_length=request.read_length,
        )

    async def take_attentions(self) -> list[Attention]:
        """All that was heard since it was last asked, and what is still pending.

        Raises ClientError, and Finding where the disk is not ready.
        """
        result = await self.session.execute(self.lun, commands.test_unit_ready())
        if not result.good:
            raise Finding(f"TEST UNIT READY by {self}: {result}", "GOOD")
        heard = self._heard[:]
        self._heard.clear()
        return heard


@dataclass(slots=True)
class Node:
    """A simulated node: its key, and its nexuses, the first of which is its usual one."""

    number: int
    initiator_name: str
    key: int
    nexuses: list[Nexus] = field(default_factory=list)

    @property
    def nexus(self) -> Nexus:
        """The usual one."""
        return self.nexuses[0]

    def __str__(self) -> str:
        return f"node {self.number}"
