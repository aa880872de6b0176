"""RESERVE and RELEASE, the whole logical unit for one nexus (SPC-2 clauses 7.20 to 7.23).

Third-party and extent reservations are obsolete and refused by the command table. The conflicts
themselves are the command table's `access` column, those with registrations too: where there are
any, only those get here for whom the commands do nothing (SPC-5 clause 5.14.3, the CRH bit).
"""

from typing import TYPE_CHECKING

from .sense import StatusError
from .task import Result, Status, Task

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit


def reserve(lu: "LogicalUnit", task: Task) -> Result:
    """RESERVE(6) and (10); the holder may repeat it, for others the gates conflict.

    BUSY while a PERSISTENT RESERVE OUT is being saved: there is never one of each kind.
    """
    if lu.reservations.registrations:
        return Result()
    if lu.reservations_changing.locked():
        raise StatusError(Status.BUSY)
    assert lu.reserved_by in (None, task.nexus)
    lu.reserved_by = task.nexus
    return Result()


def release(lu: "LogicalUnit", task: Task) -> Result:
    """RELEASE(6) and (10); from a nexus that holds nothing it changes nothing, and is GOOD."""
    if lu.reserved_by is task.nexus:
        lu.reserved_by = None
    return Result()
