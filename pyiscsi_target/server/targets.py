"""Who may use which target, and sees which disks there: decisions on config values alone.

Denies by default. Knows no socket, session or logical unit; the wire's side of a login is
`iscsi.login`, which asks these questions through its policy.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..iscsi.chap import Credentials
from ..iscsi.keys import CRC32C, NONE
from ..iscsi.keys import Limits as EngineLimits
from . import names
from .config_model import Authentication, Config, Digest, InitiatorRule, TargetConfig, is_pattern

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
LunMap = Mapping[int, str]

# What a digest setting offers (RFC 7143 section 13.1). The initiator's order decides.
_DIGEST_OFFERS: Mapping[Digest, str] = {
    "off": NONE,
    "offered": f"{CRC32C},{NONE}",
    "required": CRC32C,
}


@dataclass(frozen=True, slots=True)
class Acl:
    """One target's rules, in the order of the file: the first that matches decides."""

    rules: tuple[InitiatorRule, ...]
    luns: LunMap

    def admit(self, initiator_name: str, address: str) -> LunMap | None:
        """LUN number -> disk name of what this initiator sees; None: it is not admitted."""
        name, origin = names.normalise(initiator_name), parse_address(address)
        for rule in self.rules:
            if _matches(rule, name, origin):
                return self.luns if rule.luns is None else rule.luns
        return None


def parse_address(text: str) -> Address | None:
    """The address of a peer; an IPv4 one stays itself when it came in through an IPv6 socket."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _matches(rule: InitiatorRule, name: str, address: Address | None) -> bool:
    if rule.name is not None and not _name_matches(rule.name, name):
        return False
    return rule.address is None or (address is not None and address in rule.address)


def _name_matches(wanted: str, name: str) -> bool:
    return fnmatchcase(name, wanted) if is_pattern(wanted) else name == wanted


class ConfiguredTargets:
    """All targets of a config, as the access control sees them."""

    def __init__(self, config: Config) -> None:
        self._targets = dict(config.targets)
        self._acls = {name: Acl(t.initiators, t.luns) for name, t in config.targets.items()}

    def get(self, target_name: str) -> TargetConfig | None:
        """The target of this name, in whatever case it is written."""
        return self._targets.get(names.normalise(target_name))

    def admit(self, target_name: str, initiator_name: str, address: str) -> LunMap | None:
        """The LUN map of an initiator at a target; None where either is unknown to the other."""
        acl = self._acls.get(names.normalise(target_name))
        return None if acl is None else acl.admit(initiator_name, address)

    def visible_targets(self, initiator_name: str, address: str) -> list[str]:
        """The names that discovery tells this initiator: the targets that admit it."""
        return [
            name
            for name, acl in self._acls.items()
            if acl.admit(initiator_name, address) is not None
        ]


def credentials(authentication: Authentication) -> Credentials | None:
    """What CHAP must prove before a login; None: nothing."""
    chap, mutual = authentication.chap, authentication.mutual_chap
    if chap is None:
        return None
    return Credentials(
        name=chap.user,
        secret=chap.secret.reveal(),
        mutual_name=mutual.user if mutual else None,
        mutual_secret=mutual.secret.reveal() if mutual else None,
    )


def engine_limits(target: TargetConfig) -> EngineLimits:
    """The target's side of the negotiation."""
    limits = target.limits
    return EngineLimits(
        header_digest=_DIGEST_OFFERS[target.header_digest],
        data_digest=_DIGEST_OFFERS[target.data_digest],
        initial_r2t=limits.initial_r2t,
        immediate_data=limits.immediate_data,
        max_recv_data_segment_length=limits.max_recv_data_segment_length,
        max_burst_length=limits.max_burst_length,
        first_burst_length=limits.first_burst_length,
        max_outstanding_r2t=limits.max_outstanding_r2t,
    )
