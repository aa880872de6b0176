"""What one peer may do, as the login phase asks it (`iscsi.login.LoginPolicy`).

Joins the access control of `targets` with where a peer came from and which portal it reached.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from ..iscsi.constants import LoginStatus
from ..iscsi.keys import Limits
from ..iscsi.login import LoginError, Terms
from . import names
from .config_model import Config
from .config_values import Endpoint
from .targets import ConfiguredTargets, credentials, engine_limits, parse_address

DISCOVERY_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Portal:
    """A bound portal. Each is a portal group of its own, and so a SCSI target port of its own."""

    endpoint: Endpoint
    group_tag: int


@dataclass(frozen=True, slots=True)
class Peer:
    """Both ends of an accepted connection, as numeric addresses."""

    address: str
    port: int
    local_address: str
    portal: Portal

    def __str__(self) -> str:
        return str(Endpoint(self.address, self.port))


class PeerPolicy:
    """The `LoginPolicy` of one connection."""

    def __init__(
        self, config: Config, targets: ConfiguredTargets, portals: Sequence[Portal], peer: Peer
    ) -> None:
        self._config = config
        self._targets = targets
        self._portals = portals
        self._peer = peer

    def discovery_terms(self, initiator_name: str) -> Terms:
        """Discovery is open to all who pass its authentication; they see only what is theirs."""
        _refuse_other_forms(initiator_name)
        return Terms(
            name=None,
            limits=DISCOVERY_LIMITS,
            portal_group_tag=self._peer.portal.group_tag,
            credentials=credentials(self._config.server.discovery),
        )

    def target_terms(self, initiator_name: str, target_name: str) -> Terms:
        """The terms of a target that admits the initiator. Raises LoginError."""
        _refuse_other_forms(initiator_name)
        target = self._targets.get(target_name)
        if target is None:
            raise LoginError(LoginStatus.NOT_FOUND, f"no target {target_name}")
        if self._targets.admit(target_name, initiator_name, self._peer.address) is None:
            raise LoginError(LoginStatus.AUTHORIZATION_FAILURE, f"not admitted to {target_name}")
        return Terms(
            name=names.normalise(target_name),
            limits=engine_limits(target),
            portal_group_tag=self._peer.portal.group_tag,
            alias=target.alias,
            queue_depth=target.limits.queue_depth,
            credentials=credentials(target),
        )

    def send_targets(
        self, initiator_name: str, target_name: str | None
    ) -> list[tuple[str, list[str]]]:
        """What discovery tells (RFC 7143 appendix C): the targets that admit the initiator."""
        addresses = [
            f"{endpoint},{portal.group_tag}"
            for portal in self._portals
            if (endpoint := self._reachable(portal)) is not None
        ]
        visible = self._targets.visible_targets(initiator_name, self._peer.address)
        return [(name, addresses) for name in visible if target_name in (None, name)]

    def _reachable(self, portal: Portal) -> Endpoint | None:
        """Where this peer reaches the portal; None if it cannot.

        A wildcard stands for the address that the peer came in on; a loopback address is of use
        to nobody who did not come in on one.
        """
        address = ipaddress.ip_address(portal.endpoint.host.partition("%")[0])
        arrival = parse_address(self._peer.local_address)
        assert arrival is not None
        if address.is_unspecified:
            if address.version != arrival.version:
                return None
            return Endpoint(self._peer.local_address, portal.endpoint.port)
        if address.is_loopback and not arrival.is_loopback:
            return None
        return portal.endpoint


def _refuse_other_forms(initiator_name: str) -> None:
    """One initiator has one name: another spelling of it would be another nexus (RFC 3722)."""
    if names.normalise(initiator_name) != initiator_name:
        raise LoginError(LoginStatus.INITIATOR_ERROR, "InitiatorName is not in its normal form")
