"""The initiator's own side of a session: who logs in, with which identity and which offers."""

import secrets
from dataclasses import dataclass, field, replace

from ..iscsi.chap import Credentials
from ..iscsi.initiator_login import InitiatorSettings
from ..iscsi.keys import CRC32C, NONE, Limits
from ..scsi import transport_ids

DEFAULT_NAME = "iqn.2026-11.org.pyiscsi-target:client"
ISID_LENGTH = 6  # bytes (RFC 7143 section 11.12.5)
_RANDOM_ISID = 0x80  # T=10b: the rest is random


def random_isid() -> bytes:
    """An ISID that nobody else has, most likely (RFC 7143 section 11.12.5, T=10b)."""
    return bytes([_RANDOM_ISID]) + secrets.token_bytes(ISID_LENGTH - 1)


@dataclass(frozen=True, slots=True)
class Initiator:
    """An initiator port: its name and ISID are what a target knows it by.

    One name and ISID at one portal is one I_T nexus: it keeps its registrations over reconnects,
    and a second session of the same nexus reinstates (ends) the first. Give `isid` to be known
    again by a later run; without it every `Initiator` is another port.

    `header_digest` and `data_digest` True ask for CRC32C and refuse a login without; what else is
    offered stands in `limits`. `queue_depth` commands of `Session.execute` may be under way at
    once. Raises ValueError for an ISID of another length than six bytes.
    """

    name: str = DEFAULT_NAME
    isid: bytes = field(default_factory=random_isid)
    credentials: Credentials | None = None
    header_digest: bool = False
    data_digest: bool = False
    limits: Limits = field(default_factory=lambda: Limits(header_digest=NONE, data_digest=NONE))
    queue_depth: int = 128

    def __post_init__(self) -> None:
        if len(self.isid) != ISID_LENGTH:
            raise ValueError(f"an ISID has {ISID_LENGTH} bytes, not {len(self.isid)}")
        if self.queue_depth < 1:
            raise ValueError("queue_depth is below 1")

    @property
    def port_name(self) -> str:
        """The SCSI initiator port name (RFC 7143 section 4.2.7): what reservations are kept for."""
        return f"{self.name},i,0x{self.isid.hex()}"

    @property
    def transport_id(self) -> bytes:
        """This port's TransportID (SPC-5 clause 7.6.4.6), by which others can register it."""
        return transport_ids.encode(self.port_name)

    def settings(self, target: str | None) -> InitiatorSettings:
        """What the engine needs to log in to `target`, or for discovery."""
        limits = self.limits
        if self.header_digest:
            limits = replace(limits, header_digest=CRC32C)
        if self.data_digest:
            limits = replace(limits, data_digest=CRC32C)
        return InitiatorSettings(
            self.name,
            target,
            self.isid,
            limits=limits,
            credentials=self.credentials,
            strict=False,
        )
