"""The numbers of RFC 7143 and RFC 7144 for SAM's functions and responses."""

import pytest

from pyiscsi_target.iscsi.constants import TaskManagement
from pyiscsi_target.iscsi.constants import TaskManagementResponse as Code
from pyiscsi_target.scsi.task_management import TaskManagementFunction as Function
from pyiscsi_target.scsi.task_management import TaskManagementResponse as Response
from pyiscsi_target.server.task_management import FUNCTIONS, RESPONSES

# RFC 7143 section 11.5.1 and RFC 7144 section 4.1
NUMBERS = {
    Function.ABORT_TASK: 1,
    Function.ABORT_TASK_SET: 2,
    Function.CLEAR_ACA: 3,
    Function.CLEAR_TASK_SET: 4,
    Function.LOGICAL_UNIT_RESET: 5,
    Function.TARGET_WARM_RESET: 6,
    Function.TARGET_COLD_RESET: 7,
    Function.QUERY_TASK: 9,
    Function.QUERY_TASK_SET: 10,
    Function.I_T_NEXUS_RESET: 11,
    Function.QUERY_ASYNC_EVENT: 12,
}


@pytest.mark.parametrize("function", Function)
def test_every_function_has_its_number(function: Function) -> None:
    assert FUNCTIONS[NUMBERS[function]] is function


def test_only_task_reassign_has_no_function() -> None:
    """The engine answers it itself: nothing can be reassigned at error recovery level 0."""
    assert set(TaskManagement) - FUNCTIONS.keys() == {TaskManagement.TASK_REASSIGN}
    assert len(FUNCTIONS) == len(Function)


# RFC 7143 section 11.6.1 and RFC 7144 section 4.2
CODES = {
    Response.FUNCTION_COMPLETE: 0,
    Response.TASK_DOES_NOT_EXIST: 1,
    Response.INCORRECT_LOGICAL_UNIT_NUMBER: 2,
    Response.FUNCTION_NOT_SUPPORTED: 5,
    Response.FUNCTION_SUCCEEDED: 7,
    Response.FUNCTION_REJECTED: 255,
}


@pytest.mark.parametrize("response", Response)
def test_every_response_has_its_code(response: Response) -> None:
    assert RESPONSES[response] == CODES[response]
    assert isinstance(RESPONSES[response], Code)
