"""Discovery: which targets a portal offers, and at which addresses (RFC 7143 appendix C)."""

from collections.abc import Iterable
from dataclasses import dataclass

from .address import Portal, TargetAddress
from .errors import BadAnswer
from .initiator import Initiator
from .login import log_in


@dataclass(frozen=True, slots=True)
class DiscoveredTarget:
    """A target and where it can be reached."""

    name: str
    addresses: tuple[TargetAddress, ...]

    @property
    def portals(self) -> list[Portal]:
        """The addresses without their portal group tags."""
        return [address.portal for address in self.addresses]


async def discover(
    portal: Portal, initiator: Initiator | None = None, *, timeout_s: float = 30.0
) -> list[DiscoveredTarget]:
    """Ask a portal for its targets (SendTargets=All).

    A target without an address is reached where it was found. Raises LoginRefused, ConnectionLost,
    TimedOut; BadAnswer where an address is none.
    """
    connection = await log_in(
        portal, None, initiator or Initiator(), lambda message: None, timeout_s
    )
    try:
        _, answer = connection.ask(lambda engine: engine.send_targets())
        event = await connection.wait(answer, "SendTargets", timeout_s)
        _, farewell = connection.ask(lambda engine: engine.logout())
        await connection.wait(farewell, "Logout", timeout_s)
    finally:
        connection.end("discovery is done")
    return _targets(event.pairs, connection.portal)


def _targets(pairs: Iterable[tuple[str, str]], found_at: Portal) -> list[DiscoveredTarget]:
    """TargetName begins a target, the TargetAddress keys after it are its own."""
    found: list[tuple[str, list[TargetAddress]]] = []
    for name, value in pairs:
        if name == "TargetName":
            found.append((value, []))
        elif name == "TargetAddress" and found:
            try:
                found[-1][1].append(TargetAddress.parse(value))
            except ValueError as error:
                raise BadAnswer(f"{found_at}: TargetAddress of {found[-1][0]}: {error}") from None
    return [
        DiscoveredTarget(name, tuple(addresses) or (TargetAddress(found_at),))
        for name, addresses in found
    ]
