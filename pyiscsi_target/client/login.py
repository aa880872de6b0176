"""From a portal to a connection in the full feature phase, wherever the target has moved."""

import asyncio

from .address import Portal, TargetAddress
from .connection import Connection, OnMessage, open_connection
from .errors import MOVED, ConnectionLost, LoginRefused
from .initiator import Initiator

REDIRECTIONS_MAXIMUM = 4


async def log_in(
    portal: Portal,
    target: str | None,
    initiator: Initiator,
    on_message: OnMessage,
    timeout_s: float,
) -> Connection:
    """Log in to `target` (None: for discovery), following redirections.

    Raises LoginRefused, or ConnectionLost, also where it takes longer than `timeout_s`.
    """
    settings = initiator.settings(target)
    try:
        async with asyncio.timeout(timeout_s):
            for _ in range(1 + REDIRECTIONS_MAXIMUM):
                try:
                    return await open_connection(
                        portal, settings, initiator.queue_depth, on_message
                    )
                except LoginRefused as refusal:
                    portal = _moved_to(refusal)
    except TimeoutError:
        raise ConnectionLost(portal, f"no login within {timeout_s:g} s") from None
    raise ConnectionLost(portal, f"redirected more than {REDIRECTIONS_MAXIMUM} times")


def _moved_to(refusal: LoginRefused) -> Portal:
    """The portal that a redirection names (RFC 7143 section 11.13.5); raises anything else."""
    if refusal.status not in MOVED or refusal.target_address is None:
        raise refusal
    try:
        return TargetAddress.parse(refusal.target_address).portal
    except ValueError as error:
        raise ConnectionLost(refusal.portal, f"redirected to nowhere: {error}") from None
