"""REPORT LUNS: the logical units that this nexus may address (SPC-5, REPORT LUNS command).

Answered from the nexus alone, so it works on LUN 0 with nothing mapped there and on the REPORT
LUNS well-known logical unit.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from .sense import Asc, invalid_cdb_field
from .task import Nexus, Result, Task

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit

# SAM-6 clause 4.7: extended logical unit addressing, well known logical unit 01h
WELL_KNOWN_REPORT_LUNS = 0xC101 << 48

_PERIPHERAL_MAXIMUM = 0xFF
_FLAT = 0b01 << 14


def encode_lun(number: int) -> int:
    """A LUN as eight bytes: peripheral device addressing below 256, else flat (SAM-6 4.7)."""
    if number <= _PERIPHERAL_MAXIMUM:
        return number << 48
    return (_FLAT | number) << 48


def _disks(nexus: Nexus) -> list[int]:
    return [encode_lun(number) for number in sorted(nexus.luns)]


def _well_known(nexus: Nexus) -> list[int]:
    return [WELL_KNOWN_REPORT_LUNS]


def _all(nexus: Nexus) -> list[int]:
    return _disks(nexus) + _well_known(nexus)


def _none(nexus: Nexus) -> list[int]:
    return []


# SELECT REPORT values of SPC-5. There are no logical unit conglomerates here: no administrative
# logical units and no subsidiary ones.
SELECT_REPORT: Mapping[int, Callable[[Nexus], list[int]]] = {
    0x00: _disks,
    0x01: _well_known,
    0x02: _all,
    0x10: _none,
    0x11: _disks,
    0x12: _none,
}


def _encode(luns: Iterable[int]) -> bytes:
    body = b"".join(lun.to_bytes(8, "big") for lun in luns)
    return len(body).to_bytes(4, "big") + bytes(4) + body


def report_luns(lu: "LogicalUnit | None", task: Task) -> Result:
    """REPORT LUNS; `lu` is None where the LUN has no logical unit.

    The nexus learns what REPORTED LUNS DATA HAS CHANGED would have told it, so that condition is
    cleared in every logical unit of the nexus, whichever was asked (SAM-6, Unit attention
    conditions). Raises ScsiError for a reserved SELECT REPORT value.
    """
    cdb = task.cdb
    select = SELECT_REPORT.get(cdb[2])
    if select is None:
        raise invalid_cdb_field(2, 7)
    for unit in task.nexus.luns.values():
        unit.attentions.clear(task.nexus, Asc.REPORTED_LUNS_DATA_HAS_CHANGED)
    allocation_length = int.from_bytes(cdb[6:10], "big")
    return Result(data=_encode(select(task.nexus))[:allocation_length])
