"""Task management functions and responses: RFC 7143's and RFC 7144's numbers for SAM's names."""

from collections.abc import Mapping

from ..iscsi.constants import TaskManagement
from ..iscsi.constants import TaskManagementResponse as Code
from ..scsi.task_management import TaskManagementFunction as Function
from ..scsi.task_management import TaskManagementResponse as Response

FUNCTIONS: Mapping[int, Function] = {
    TaskManagement.ABORT_TASK: Function.ABORT_TASK,
    TaskManagement.ABORT_TASK_SET: Function.ABORT_TASK_SET,
    TaskManagement.CLEAR_ACA: Function.CLEAR_ACA,
    TaskManagement.CLEAR_TASK_SET: Function.CLEAR_TASK_SET,
    TaskManagement.LOGICAL_UNIT_RESET: Function.LOGICAL_UNIT_RESET,
    TaskManagement.TARGET_WARM_RESET: Function.TARGET_WARM_RESET,
    TaskManagement.TARGET_COLD_RESET: Function.TARGET_COLD_RESET,
    TaskManagement.QUERY_TASK: Function.QUERY_TASK,
    TaskManagement.QUERY_TASK_SET: Function.QUERY_TASK_SET,
    TaskManagement.I_T_NEXUS_RESET: Function.I_T_NEXUS_RESET,
    TaskManagement.QUERY_ASYNCHRONOUS_EVENT: Function.QUERY_ASYNC_EVENT,
}

RESPONSES: Mapping[Response, Code] = {
    Response.FUNCTION_COMPLETE: Code.FUNCTION_COMPLETE,
    Response.FUNCTION_SUCCEEDED: Code.FUNCTION_SUCCEEDED,
    Response.FUNCTION_REJECTED: Code.FUNCTION_REJECTED,
    Response.FUNCTION_NOT_SUPPORTED: Code.NOT_SUPPORTED,
    Response.TASK_DOES_NOT_EXIST: Code.TASK_DOES_NOT_EXIST,
    Response.INCORRECT_LOGICAL_UNIT_NUMBER: Code.LUN_DOES_NOT_EXIST,
}
