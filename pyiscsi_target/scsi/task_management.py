"""Task management functions (SAM-6 clause 7): which tasks they end, and what else they reset.

Works on the logical units that the requesting nexus may reach, whoever else uses them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from .logical_unit import LogicalUnit
from .sense import Asc
from .task import Nexus, Task


class TaskManagementFunction(Enum):
    """SAM-6 clause 7, and the target resets that RFC 7143 section 11.5.1 kept of SAM-2."""

    ABORT_TASK = auto()
    ABORT_TASK_SET = auto()
    CLEAR_ACA = auto()
    CLEAR_TASK_SET = auto()
    LOGICAL_UNIT_RESET = auto()
    TARGET_WARM_RESET = auto()
    TARGET_COLD_RESET = auto()
    QUERY_TASK = auto()
    QUERY_TASK_SET = auto()
    I_T_NEXUS_RESET = auto()
    QUERY_ASYNC_EVENT = auto()


class TaskManagementResponse(Enum):
    """SAM-6 clause 7.1; iSCSI tells a missing task from an aborted one, so this does too."""

    FUNCTION_COMPLETE = auto()
    FUNCTION_SUCCEEDED = auto()
    FUNCTION_REJECTED = auto()
    FUNCTION_NOT_SUPPORTED = auto()
    TASK_DOES_NOT_EXIST = auto()
    INCORRECT_LOGICAL_UNIT_NUMBER = auto()


_Picks = Callable[[Nexus, Task, int], bool]  # requesting nexus, a task, the referenced tag


def _its_task(nexus: Nexus, task: Task, tag: int) -> bool:
    return task.nexus is nexus and task.tag == tag


def _its_tasks(nexus: Nexus, task: Task, tag: int) -> bool:
    return task.nexus is nexus


def _all_tasks(nexus: Nexus, task: Task, tag: int) -> bool:
    return True


class Scope(Enum):
    """Which logical units a function reaches."""

    ONE_LUN = auto()
    ALL_LUNS = auto()


@dataclass(frozen=True, slots=True)
class Action:
    """What a function that aborts does to the tasks that it picks.

    `reset` is the attention that all nexuses get from a reset.
    """

    scope: Scope
    picks: _Picks
    reset: Asc | None = None
    must_find: bool = False  # answer TASK DOES NOT EXIST where nothing is picked


# A target reset is confined to what the nexus may reach: no initiator disturbs another's disks.
# An I_T nexus reset is I_T nexus loss without losing the session (SAM-6 clause 6.3.4).
ACTIONS: dict[TaskManagementFunction, Action] = {
    TaskManagementFunction.ABORT_TASK: Action(Scope.ONE_LUN, _its_task, must_find=True),
    TaskManagementFunction.ABORT_TASK_SET: Action(Scope.ONE_LUN, _its_tasks),
    TaskManagementFunction.CLEAR_TASK_SET: Action(Scope.ONE_LUN, _all_tasks),
    TaskManagementFunction.LOGICAL_UNIT_RESET: Action(
        Scope.ONE_LUN, _all_tasks, Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED
    ),
    TaskManagementFunction.TARGET_WARM_RESET: Action(
        Scope.ALL_LUNS, _all_tasks, Asc.SCSI_BUS_RESET_OCCURRED
    ),
    TaskManagementFunction.TARGET_COLD_RESET: Action(
        Scope.ALL_LUNS, _all_tasks, Asc.POWER_ON_OCCURRED
    ),
    TaskManagementFunction.I_T_NEXUS_RESET: Action(Scope.ALL_LUNS, _its_tasks),
}


def _has_task(lu: LogicalUnit, nexus: Nexus, tag: int) -> bool:
    return any(_its_task(nexus, task, tag) for task in lu.tasks.alive())


def _has_tasks(lu: LogicalUnit, nexus: Nexus, tag: int) -> bool:
    return any(_its_tasks(nexus, task, tag) for task in lu.tasks.alive())


def _has_attention(lu: LogicalUnit, nexus: Nexus, tag: int) -> bool:
    return nexus in lu.attentions.pending


# What a function asks of a logical unit: FUNCTION SUCCEEDED tells that it is so (SAM-6 clauses 7.8
# to 7.10). Which attention is pending has no place in iSCSI's answer.
QUERIES: dict[TaskManagementFunction, Callable[[LogicalUnit, Nexus, int], bool]] = {
    TaskManagementFunction.QUERY_TASK: _has_task,
    TaskManagementFunction.QUERY_TASK_SET: _has_tasks,
    TaskManagementFunction.QUERY_ASYNC_EVENT: _has_attention,
}


Aborted = list[tuple[LogicalUnit, list[Task]]]


def abort_tasks(lu: LogicalUnit, nexus: Nexus, action: Action, tag: int) -> list[Task]:
    """Abort what the action picks; tell the others whose tasks went (SAM-6 table 44).

    Returns the tasks that were picked; those that were executing end by themselves.
    """
    picked = lu.tasks.select(lambda task: action.picks(nexus, task, tag))
    silenced = [task for task in lu.abort(picked, by=nexus) if not task.answer_aborted]
    if action.reset is None:
        for task in silenced:
            if task.nexus is not nexus:
                lu.attentions.establish(task.nexus, Asc.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)
    return picked


def perform(
    action: Action, units: list[LogicalUnit], nexus: Nexus, tag: int
) -> tuple[TaskManagementResponse, Aborted]:
    """Carry out a function on logical units: the response, due when all that it aborted ended."""
    picked = [(lu, abort_tasks(lu, nexus, action, tag)) for lu in units]
    if action.must_find and not any(tasks for _, tasks in picked):
        return TaskManagementResponse.TASK_DOES_NOT_EXIST, []
    if action.reset is not None:
        for lu in units:
            lu.reset(action.reset)
    return TaskManagementResponse.FUNCTION_COMPLETE, picked


def ask(
    function: TaskManagementFunction, lu: LogicalUnit, nexus: Nexus, tag: int
) -> TaskManagementResponse:
    """Answer a function that aborts nothing."""
    if QUERIES[function](lu, nexus, tag):
        return TaskManagementResponse.FUNCTION_SUCCEEDED
    return TaskManagementResponse.FUNCTION_COMPLETE
