"""All sessions of the server: opening, reinstatement, limits (RFC 7143 section 6.3).

Knows which nexus belongs to which session; the bytes are the connection's, the commands SCSI's.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..iscsi.constants import LoginStatus
from ..iscsi.login import Agreement, LoginError
from ..scsi.logical_unit import LogicalUnit
from ..scsi.target_device import TargetDevice
from ..scsi.task import Nexus

TSIH_MAX = 0xFFFF

# (SCSI initiator port name, target name, portal group tag): one session each.
SessionKey = tuple[str, str | None, int]


class SessionConnection(Protocol):
    """What a session needs of its connection."""

    closed: bool

    async def end(self, reason: str, *, nexus_lost: bool) -> None:
        """Close at once and return when nothing of the connection runs any more."""
        ...


@dataclass(slots=True, eq=False)
class Session:
    """An open session. `nexus` and `device` are None in a discovery session."""

    tsih: int
    agreement: Agreement
    connection: SessionConnection
    device: TargetDevice | None = None
    nexus: Nexus | None = None

    @property
    def key(self) -> SessionKey:
        return session_key(self.agreement)


def session_key(agreement: Agreement) -> SessionKey:
    """What identifies the session that an initiator asks for."""
    terms = agreement.terms
    return agreement.initiator_port_name, terms.name, terms.portal_group_tag


# (target name, initiator name, address) -> the LUN map of the nexus; None if not admitted.
LunsFor = Callable[[str, str, str], dict[int, LogicalUnit] | None]


@dataclass(slots=True)
class SessionRegistry:
    """The open sessions by TSIH and by key. Owned by the event loop: no locks."""

    devices: Mapping[str, TargetDevice]
    luns_for: LunsFor
    max_sessions: Mapping[str, int]
    relative_target_ports: Mapping[tuple[str, int], int]  # by target name and portal group tag
    by_tsih: dict[int, Session] = field(default_factory=dict)
    by_key: dict[SessionKey, Session] = field(default_factory=dict)
    _last_tsih: int = 0

    def count_by_target(self) -> dict[str, int]:
        """Open sessions by target name ("" for discovery)."""
        return dict(Counter(s.agreement.terms.name or "" for s in list(self.by_key.values())))

    async def open(
        self, agreement: Agreement, connection: SessionConnection, address: str
    ) -> Session:
        """Open the session that a login agreed on, ending the one that it replaces.

        The caller must check whether its connection is still there. Raises LoginError.
        """
        key = session_key(agreement)
        kept = self._session_to_keep(agreement, key)
        while not connection.closed and (old := self.by_key.get(key)) is not None:
            await self._replace(old, kept)
        if kept is not None:
            _check_alive(kept)
        session = Session(
            tsih=kept.tsih if kept is not None else self._new_tsih(agreement),
            agreement=agreement,
            connection=connection,
        )
        if not connection.closed:
            self._attach(session, kept, address)
            self.by_tsih[session.tsih] = self.by_key[key] = session
        elif key not in self.by_key and kept is not None and kept.device and kept.nexus:
            kept.device.detach(kept.nexus, lost=True)  # nobody goes on with it
        return session

    def _session_to_keep(self, agreement: Agreement, key: SessionKey) -> Session | None:
        """The session whose connection is reinstated (section 6.3.4), None for a new session."""
        if agreement.tsih == 0:
            return None
        session = self.by_tsih.get(agreement.tsih)
        if session is None or session.key != key:
            raise LoginError(LoginStatus.SESSION_DOES_NOT_EXIST, f"no session {agreement.tsih}")
        if session.agreement.cid != agreement.cid:
            raise LoginError(LoginStatus.TOO_MANY_CONNECTIONS, "MaxConnections is 1")
        return session

    async def _replace(self, old: Session, kept: Session | None) -> None:
        """End a session that has the key. Its connection may be ending for another login already.

        Where the nexus of `kept` goes on, so does that of `old`: they are one, for there is one
        nexus to a key as long as it lives. Raises LoginError where it lives no longer.
        """
        if kept is not None:
            _check_alive(kept)
        await old.connection.end("reinstated", nexus_lost=kept is None)
        if kept is None and old.device is not None and old.nexus is not None:
            old.device.detach(old.nexus, lost=True)
        self.ended(old)

    def _new_tsih(self, agreement: Agreement) -> int:
        name = agreement.terms.name or ""
        limit = self.max_sessions.get(name, TSIH_MAX)
        if len(self.by_tsih) >= TSIH_MAX or self.count_by_target().get(name, 0) >= limit:
            raise LoginError(LoginStatus.OUT_OF_RESOURCES, "too many sessions")
        while True:
            self._last_tsih = self._last_tsih % TSIH_MAX + 1
            if self._last_tsih not in self.by_tsih:
                return self._last_tsih

    def _attach(self, session: Session, kept: Session | None, address: str) -> None:
        """Create the I_T nexus (section 4.4.3), or take it over unharmed."""
        agreement = session.agreement
        name = agreement.terms.name
        if name is None:
            return
        session.device = self.devices[name]
        if kept is not None and kept.nexus is not None:
            session.nexus = kept.nexus
            return
        luns = self.luns_for(name, agreement.initiator_name, address)
        if luns is None:
            raise LoginError(LoginStatus.AUTHORIZATION_FAILURE, f"not admitted to {name}")
        tag = agreement.terms.portal_group_tag
        session.nexus = Nexus(
            initiator_name=agreement.initiator_name,
            initiator_port_name=agreement.initiator_port_name,
            target_port_name=f"{name},t,0x{tag:04x}",
            relative_target_port=self.relative_target_ports[name, tag],
            luns=luns,
        )
        session.device.attach(session.nexus)

    def close(self, session: Session, *, nexus_lost: bool) -> None:
        """The session's connection is closed: its tasks are aborted, and its nexus is gone.

        Its key stays taken until `ended`, for what it had under way may still touch the disks.
        """
        self.by_tsih.pop(session.tsih, None)
        if session.device is None or session.nexus is None:
            return
        if nexus_lost:
            session.device.detach(session.nexus, lost=True)
        else:
            session.device.abort_tasks(session.nexus)

    def ended(self, session: Session) -> None:
        """Nothing of the session runs any more."""
        if self.by_key.get(session.key) is session:
            del self.by_key[session.key]


def _check_alive(kept: Session) -> None:
    """A login that came later, or a lost connection, may have ended the session meanwhile."""
    if kept.device is None or kept.nexus is None or kept.device.is_attached(kept.nexus):
        return
    raise LoginError(LoginStatus.SESSION_DOES_NOT_EXIST, f"no session {kept.tsih}")
