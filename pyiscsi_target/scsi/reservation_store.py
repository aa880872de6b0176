"""Where a logical unit's registrations and reservation are kept: what the device server asks of it.

The device server calls `save` before anything of a change can be seen. Knows no file.
"""

from typing import Protocol

from .reservations import State


class ReservationsNotSaved(Exception):
    """The state could not be made durable; the one before still stands. The message says why."""


class ReservationStore(Protocol):
    """Keeps the persistent reservations of logical units by their names."""

    async def save(self, name: str, state: State) -> None:
        """Make `state` durable. Raises ReservationsNotSaved."""
        ...


class VolatileReservations:
    """Keeps nothing: reservations end with the process."""

    async def save(self, name: str, state: State) -> None:
        """See `ReservationStore.save`."""
