"""A SCSI target device as one I_T nexus after another sees it: LUNs in front of logical units.

Decodes LUNs, finds the logical unit in the nexus's own LUN map and answers for LUNs where nothing
is. It keeps who is attached to what; it knows no command that a logical unit serves.
"""

from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from . import inquiry, primary, report_luns
from .logical_unit import LogicalUnit
from .sense import Asc, ScsiError, SenseKey, encode_sense, no_sense
from .task import Nexus, Outcome, Result, Status, Task
from .task_management import (
    ACTIONS,
    QUERIES,
    Aborted,
    Scope,
    TaskManagementFunction,
    TaskManagementResponse,
    ask,
    perform,
)

_SINGLE_LEVEL = 0x0000_FFFF_FFFF_FFFF  # the three lower levels, zero in a single level LUN
_PERIPHERAL_MAX = 0x00FF
_FLAT_FIRST, _FLAT_MAX, _FLAT_NUMBER = 0x4000, 0x7FFF, 0x3FFF
_NO_LUN = -1

# What a new nexus hears: the code that initiators know how to pass over (libiscsi's tools stop at
# the more specific POWER ON OCCURRED).
_FIRST_ATTENTION = Asc.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED

# How many nexuses are remembered, so that a new session of one of them is told of the loss of the
# old one rather than of a power on. Forgetting one costs nothing but that distinction.
_REMEMBERED_NEXUSES = 4096


def lun_number(lun: int) -> int:
    """The number of a single level LUN, -1 for any other (SAM-6 clause 4.7.7).

    Peripheral device addressing (bus 0) and flat space addressing name the same units.
    """
    first_level = lun >> 48
    if lun & _SINGLE_LEVEL:
        return _NO_LUN
    if first_level <= _PERIPHERAL_MAX:
        return first_level
    if _FLAT_FIRST <= first_level <= _FLAT_MAX:
        return first_level & _FLAT_NUMBER
    return _NO_LUN


_NO_SENSE = no_sense()
_Answers = dict[int, Callable[[Task], Result]]

# What a LUN without a logical unit answers (SPC-5 clauses 6.7, 6.33 and 6.39); anything else is
# refused with LOGICAL UNIT NOT SUPPORTED. REPORT LUNS is for LUN 0 only.
_ABSENT: _Answers = {0x12: inquiry.absent_inquiry, 0x03: primary.absent_request_sense}
_ABSENT_LUN_0: _Answers = _ABSENT | {0xA0: lambda task: report_luns.report_luns(None, task)}
# The REPORT LUNS well-known logical unit (SPC-5 clause 9.2)
_WELL_KNOWN: _Answers = {
    0x00: lambda task: Result(),
    0x03: lambda task: Result(data=encode_sense(_NO_SENSE, bool(task.cdb[1] & 1))[: task.cdb[4]]),
    0x12: inquiry.well_known_inquiry,
    0xA0: lambda task: report_luns.report_luns(None, task),
}


class TargetDevice:
    """What a nexus talks to: one object per iSCSI target.

    All methods are called from the event loop; none of them raises.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._attached: dict[Nexus, set[LogicalUnit]] = {}
        self._remembered: OrderedDict[tuple[str, int], None] = OrderedDict()

    # I_T nexuses

    def attach(self, nexus: Nexus) -> None:
        """A session begins: its first command on each logical unit hears why the state is new.

        29h/00h for a nexus that was not here since the start, 29h/07h for one that was.
        """
        lost = nexus.key in self._remembered
        attention = Asc.I_T_NEXUS_LOSS_OCCURRED if lost else _FIRST_ATTENTION
        self._remembered[nexus.key] = None
        self._remembered.move_to_end(nexus.key)
        if len(self._remembered) > _REMEMBERED_NEXUSES:
            self._remembered.popitem(last=False)
        units = set(nexus.luns.values())
        self._attached[nexus] = units
        for lu in units:
            lu.attach(nexus, attention)

    def is_attached(self, nexus: Nexus) -> bool:
        """Whether the nexus lives."""
        return nexus in self._attached

    def detach(self, nexus: Nexus, *, lost: bool) -> None:
        """A session ends, by logout or because it was `lost`: I_T nexus loss either way.

        Its tasks are aborted without an answer; those that are executing end by themselves.
        Idempotent.
        """
        for lu in self._attached.pop(nexus, set()):
            _leave(lu, nexus)

    def abort_tasks(self, nexus: Nexus) -> None:
        """Abort all that the nexus has under way, without an answer; the nexus lives on."""
        for lu in self._attached.get(nexus, ()):
            _abort(lu, nexus)

    def luns_changed(self, nexus: Nexus) -> None:
        """The nexus's LUN map is another one now; every logical unit in it says so (3Fh/0Eh)."""
        before = self._attached.get(nexus)
        if before is None:
            return
        units = set(nexus.luns.values())
        for lu in before - units:
            _leave(lu, nexus)
        for lu in units - before:
            lu.attach(nexus, _FIRST_ATTENTION)
        for lu in units:
            lu.attentions.establish(nexus, Asc.REPORTED_LUNS_DATA_HAS_CHANGED)
        self._attached[nexus] = units

    # Commands

    def execute(self, task: Task) -> Outcome:
        """Run a command: a Result at once, or a coroutine to be awaited and never cancelled.

        Where a coroutine is returned and `task.data_out_is_stable` is False, the caller sets
        `task.data_out` to a copy before it lets go of the memory. When the coroutine ends and
        `task.aborted` is set, only a Result with TASK ABORTED is sent.
        """
        lun = task.lun
        number = lun >> 48
        if number > 255 or lun & 0x0000_FFFF_FFFF_FFFF:
            number = lun_number(lun)
        lu = task.nexus.luns.get(number)
        if lu is not None:
            return lu.execute(task)
        return self._answer_without_unit(task, number)

    def data_out_length(self, task: Task) -> int | Result:
        """How many bytes of data-out to solicit, or the answer to a command that must not run."""
        lu = task.nexus.luns.get(lun_number(task.lun))
        if lu is None:
            return 0  # `execute` refuses it
        try:
            return lu.data_out_length(task)
        except Exception as error:
            return lu.failure(error, task)

    def register(self, task: Task) -> None:
        """Data-out is solicited for the task: it takes its place in the task set from now on.

        If it is aborted meanwhile, `task.on_abort` is called and it must not reach `execute`.
        """
        lu = task.nexus.luns.get(lun_number(task.lun))
        if lu is not None:
            lu.tasks.enter(task, executing=False)

    def finish(self, task: Task) -> None:
        """The task ends without reaching `execute`."""
        lu = task.nexus.luns.get(lun_number(task.lun))
        if lu is not None:
            lu.tasks.finish(task)

    def _answer_without_unit(self, task: Task, number: int) -> Result:
        if task.lun == report_luns.WELL_KNOWN_REPORT_LUNS:
            answers = _WELL_KNOWN
        else:
            answers = _ABSENT_LUN_0 if number == 0 else _ABSENT
        answer = answers.get(task.cdb[0])
        try:
            if answer is not None:
                return answer(task)
            raise _refusal_without_unit(answers is _WELL_KNOWN)
        except ScsiError as error:
            return Result(Status.CHECK_CONDITION, sense=encode_sense(error, descriptor=False))

    # Task management

    def manage(
        self, function: TaskManagementFunction, nexus: Nexus, lun: int, tag: int = 0
    ) -> Coroutine[Any, Any, TaskManagementResponse]:
        """Carry out a task management function for a nexus (SAM-6 clause 7).

        `tag` is the referenced task's. It takes effect at once, on the tasks that are there now;
        the coroutine ends when every task that it aborted has ended.
        """
        return _when_ended(*self._perform(function, nexus, lun, tag))

    def _perform(
        self, function: TaskManagementFunction, nexus: Nexus, lun: int, tag: int
    ) -> tuple[TaskManagementResponse, Aborted]:
        action = ACTIONS.get(function)
        if action is None and function not in QUERIES:
            # CLEAR ACA: no ACA condition ever exists (NORMACA=0)
            return TaskManagementResponse.FUNCTION_NOT_SUPPORTED, []
        if action is not None and action.scope is Scope.ALL_LUNS:
            units = list(dict.fromkeys(nexus.luns.values()))
        else:
            lu = nexus.luns.get(lun_number(lun))
            if lu is None:
                return TaskManagementResponse.INCORRECT_LOGICAL_UNIT_NUMBER, []
            units = [lu]
        if action is None:
            return ask(function, units[0], nexus, tag), []
        response, aborted = perform(action, units, nexus, tag)
        if function is TaskManagementFunction.I_T_NEXUS_RESET:
            self.detach(nexus, lost=True)
            self.attach(nexus)
        elif function is TaskManagementFunction.TARGET_COLD_RESET:
            self._remembered.clear()  # a power on: new sessions hear of that, not of their loss
        return response, aborted


async def _when_ended(response: TaskManagementResponse, aborted: Aborted) -> TaskManagementResponse:
    for lu, tasks in aborted:
        await lu.tasks.ended(tasks)
    return response


def _refusal_without_unit(well_known: bool) -> ScsiError:
    asc = Asc.INVALID_COMMAND_OPERATION_CODE if well_known else Asc.LOGICAL_UNIT_NOT_SUPPORTED
    return ScsiError(SenseKey.ILLEGAL_REQUEST, asc)


def _abort(lu: LogicalUnit, nexus: Nexus) -> None:
    lu.abort(lu.tasks.select(lambda task: task.nexus is nexus))


def _leave(lu: LogicalUnit, nexus: Nexus) -> None:
    _abort(lu, nexus)
    lu.detach(nexus)
