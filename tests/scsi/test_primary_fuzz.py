"""Random CDBs and parameter lists to the handlers themselves, without the gates before them."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyiscsi_target.scsi import (
    diagnostics,
    inquiry,
    log_pages,
    mode_commands,
    primary,
    report_luns,
    supported,
)
from pyiscsi_target.scsi.commands import Handler
from pyiscsi_target.scsi.sense import ScsiError, StatusError
from pyiscsi_target.scsi.task import Outcome, Result, Task
from tests.support.memory_disk import data_of, make_disk, make_nexus

HANDLERS: tuple[Handler, ...] = (
    diagnostics.receive_diagnostic_results,
    diagnostics.send_diagnostic,
    inquiry.inquiry,
    log_pages.log_sense,
    mode_commands.mode_select_10,
    mode_commands.mode_select_6,
    mode_commands.mode_sense_10,
    mode_commands.mode_sense_6,
    primary.prevent_allow,
    primary.request_sense,
    primary.start_stop_unit,
    primary.test_unit_ready,
    report_luns.report_luns,
    supported.report_supported_opcodes,
    supported.report_supported_tmfs,
)
# Where the allocation length is, for those that have one
ALLOCATION_LENGTH: dict[Handler, slice] = {
    diagnostics.receive_diagnostic_results: slice(3, 5),
    inquiry.inquiry: slice(3, 5),
    log_pages.log_sense: slice(7, 9),
    mode_commands.mode_sense_10: slice(7, 9),
    mode_commands.mode_sense_6: slice(4, 5),
    primary.request_sense: slice(4, 5),
    report_luns.report_luns: slice(6, 10),
    supported.report_supported_opcodes: slice(6, 10),
    supported.report_supported_tmfs: slice(6, 10),
}


async def _finish(outcome: Outcome) -> Result:
    return outcome if isinstance(outcome, Result) else await outcome


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.__name__)
@settings(max_examples=60)
@given(cdb=st.binary(min_size=16, max_size=16), data_out=st.binary(max_size=64))
def test_any_bytes_end_in_a_result_or_in_sense_data(
    handler: Handler, cdb: bytes, data_out: bytes
) -> None:
    lu, nexus = make_disk(), make_nexus()
    nexus.luns[0] = lu
    try:
        result = asyncio.run(_finish(handler(lu, Task(nexus, 0, cdb, [data_out]))))
    except (ScsiError, StatusError):
        assert not lu.attentions.pending
        return
    length = ALLOCATION_LENGTH.get(handler)
    if length is None:
        assert result.data is None
    else:
        assert len(data_of(result)) <= int.from_bytes(cdb[length])
