"""Small commands about the unit itself: TEST UNIT READY, REQUEST SENSE, START STOP UNIT, PREVENT
ALLOW MEDIUM REMOVAL (SPC-5, SBC-4).

What a unit without medium refuses is decided by the gates in front of the handlers, not here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .sense import (
    Asc,
    ScsiError,
    SenseKey,
    encode_sense,
    invalid_cdb_field,
    medium_not_present,
    no_sense,
)
from .task import Outcome, Result, Task

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit

# CDB bits
DESC = 0x01  # REQUEST SENSE byte 1
NO_FLUSH = 0x04  # START STOP UNIT byte 4
LOEJ = 0x02
START = 0x01


def test_unit_ready(lu: "LogicalUnit", task: Task) -> Result:
    """TEST UNIT READY (SPC-5): the gates have refused whatever is not ready."""
    return Result()


def _sense_to_report(lu: "LogicalUnit", task: Task) -> ScsiError:
    """A pending unit attention, else why it is not ready, else nothing."""
    attention = lu.attentions.take(task.nexus)
    if attention is not None:
        return ScsiError(SenseKey.UNIT_ATTENTION, attention)
    return medium_not_present() if lu.ejected else no_sense()


def _sense_as_data(error: ScsiError, cdb: bytes) -> Result:
    return Result(data=encode_sense(error, bool(cdb[1] & DESC))[: cdb[4]])


def request_sense(lu: "LogicalUnit", task: Task) -> Result:
    """REQUEST SENSE (SPC-5): sense data as parameter data, with status GOOD.

    A unit attention that is reported is cleared (SAM-6, Unit attention conditions).
    """
    return _sense_as_data(_sense_to_report(lu, task), task.cdb)


def absent_request_sense(task: Task) -> Result:
    """REQUEST SENSE to a LUN where nothing is: the refusal as parameter data (SPC-5)."""
    refusal = ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_UNIT_NOT_SUPPORTED)
    return _sense_as_data(refusal, task.cdb)


@dataclass(frozen=True, slots=True)
class _PowerCondition:
    """A POWER CONDITION value of START STOP UNIT and the greatest modifier it may have."""

    name: str
    maximum_modifier: int
    flushes: bool


# SBC-4, POWER CONDITION and POWER CONDITION MODIFIER fields. A disk that is a file is as quick in
# standby as when active: the conditions matter only for what they flush.
START_VALID = 0x0
POWER_CONDITIONS: Mapping[int, _PowerCondition] = {
    0x1: _PowerCondition("ACTIVE", 0, flushes=False),
    0x2: _PowerCondition("IDLE", 2, flushes=False),
    0x3: _PowerCondition("STANDBY", 1, flushes=True),
    0x7: _PowerCondition("LU_CONTROL", 0, flushes=False),
    0xA: _PowerCondition("FORCE_IDLE_0", 2, flushes=False),
    0xB: _PowerCondition("FORCE_STANDBY_0", 1, flushes=True),
}


async def _flush(lu: "LogicalUnit") -> Result:
    await lu.store.flush()
    return Result()


async def _eject_after_flush(lu: "LogicalUnit") -> Result:
    """Eject first, so that nothing new is cached behind the flush; load again where that fails."""
    lu.ejected = True
    try:
        await lu.store.flush()
    except BaseException:
        lu.ejected = False
        raise
    return Result()


def _load(lu: "LogicalUnit", task: Task) -> Result:
    """Bring the medium back; the other nexuses learn that it may be another one."""
    if lu.ejected:
        asc = Asc.NOT_READY_TO_READY_CHANGE_MEDIUM_MAY_HAVE_CHANGED
        lu.attentions.establish_for_others(asc, but=task.nexus)
    lu.ejected = False
    return Result()


def _eject_or_load(lu: "LogicalUnit", task: Task, options: int) -> Outcome:
    """START STOP UNIT with LOEJ=1."""
    if not lu.settings.removable:
        raise invalid_cdb_field(4, 1)
    if lu.prevented_by:
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.MEDIUM_REMOVAL_PREVENTED)
    if options & START:
        return _load(lu, task)
    if not lu.ejected and not options & NO_FLUSH:
        return _eject_after_flush(lu)
    lu.ejected = True
    return Result()


def _start_or_stop(lu: "LogicalUnit", options: int) -> Outcome:
    """START STOP UNIT with LOEJ=0.

    A stop only flushes: there is no motor, and a node that shuts down must not take a shared disk
    from the others.
    """
    if lu.ejected:
        raise medium_not_present()
    if options & (START | NO_FLUSH):
        return Result()
    return _flush(lu)


def start_stop_unit(lu: "LogicalUnit", task: Task) -> Outcome:
    """START STOP UNIT (SBC-4). Raises ScsiError.

    IMMED makes no difference: nothing here takes longer than a flush.
    """
    options = task.cdb[4]
    power_condition = options >> 4
    if power_condition == START_VALID:
        if options & LOEJ:
            return _eject_or_load(lu, task, options)
        return _start_or_stop(lu, options)
    condition = POWER_CONDITIONS.get(power_condition)
    if condition is None:
        raise invalid_cdb_field(4, 7)
    if task.cdb[3] & 0x0F > condition.maximum_modifier:
        raise invalid_cdb_field(3, 3)
    if condition.flushes and not options & NO_FLUSH:
        return _flush(lu)
    return Result()


def prevent_allow(lu: "LogicalUnit", task: Task) -> Result:
    """PREVENT ALLOW MEDIUM REMOVAL (SBC-4). Raises ScsiError.

    Each nexus prevents and allows for itself. The obsolete values 10b and 11b are refused.
    """
    prevent = task.cdb[4] & 0x03
    if prevent > 1:
        raise invalid_cdb_field(4, 1)
    if prevent:
        lu.prevented_by.add(task.nexus)
    else:
        lu.prevented_by.discard(task.nexus)
    return Result()
