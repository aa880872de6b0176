"""Unit attention conditions of one logical unit, per I_T nexus (SAM-6 clause 5.14).

Knows which nexuses are attached and what each of them has not been told yet; knows neither
commands nor why a condition arose.
"""

from .sense import Asc
from .task import Nexus

# Lower ranks are reported first, and one of the reset family tells all that a lesser member of
# the family would (SAM-6 table 47, unit attention condition precedence).
_RESET_RANK = {
    Asc.POWER_ON_OCCURRED: 0,
    Asc.DEVICE_INTERNAL_RESET: 0,
    Asc.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED: 1,
    Asc.SCSI_BUS_RESET_OCCURRED: 2,
    Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED: 3,
    Asc.I_T_NEXUS_LOSS_OCCURRED: 4,
}
_OTHER_RANK = 5


class UnitAttentions:
    """What each attached nexus has yet to be told.

    `pending` holds only nexuses with something to report, so its truth is the hot path's test.
    """

    __slots__ = ("nexuses", "pending")

    def __init__(self) -> None:
        self.nexuses: dict[Nexus, None] = {}  # a set that keeps the order of arrival
        self.pending: dict[Nexus, list[Asc]] = {}

    def attach(self, nexus: Nexus) -> None:
        """Start keeping conditions for `nexus`."""
        self.nexuses[nexus] = None

    def detach(self, nexus: Nexus) -> None:
        """Forget `nexus` and what it was not told: the conditions die with the I_T nexus."""
        self.nexuses.pop(nexus, None)
        self.pending.pop(nexus, None)

    def establish(self, nexus: Nexus, asc: Asc) -> None:
        """Queue `asc` for one attached nexus, unless it is queued already or says nothing new."""
        if nexus not in self.nexuses:
            return
        queue = self.pending.setdefault(nexus, [])
        if asc in queue:
            return
        rank = _RESET_RANK.get(asc, _OTHER_RANK)
        if rank < _OTHER_RANK:
            if queue and _RESET_RANK.get(queue[0], _OTHER_RANK) <= rank:
                return
            queue[:] = [other for other in queue if other not in _RESET_RANK]
            queue.insert(0, asc)
        else:
            queue.append(asc)

    def establish_for_others(self, asc: Asc, *, but: Nexus | None = None) -> None:
        """Queue `asc` for every attached nexus except `but`, who caused it."""
        for nexus in self.nexuses:
            if nexus is not but:
                self.establish(nexus, asc)

    def take(self, nexus: Nexus) -> Asc | None:
        """Remove and return the condition to report next, None if there is none."""
        queue = self.pending.get(nexus)
        if not queue:
            return None
        asc = queue.pop(0)
        if not queue:
            del self.pending[nexus]
        return asc

    def clear(self, nexus: Nexus, asc: Asc) -> None:
        """Drop one condition that the nexus has learned of in another way."""
        queue = self.pending.get(nexus)
        if queue and asc in queue:
            queue.remove(asc)
            if not queue:
                del self.pending[nexus]
