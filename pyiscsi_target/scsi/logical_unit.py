"""A logical unit: one disk's device server, shared by all nexuses that may reach it.

Finds a command's row, passes its gates, runs its handler, and turns what went wrong into a Result.
It knows no command by name and nothing of LUNs: several targets may show the same logical unit.
"""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from ..storage.base import BackingStore, StorageError, StorageFault
from . import limits
from .commands import SERVICE_ACTION_MASK, Command, commands_for
from .identifiers import Identity
from .mode_pages import ModeState
from .ordering import BlockRanges, TaskAborted, TaskSet
from .reservation_store import ReservationsNotSaved, ReservationStore, VolatileReservations
from .reservations import (
    NOTHING,
    PASSES_RESERVE,
    Access,
    Change,
    NexusKey,
    Request,
    State,
    change,
    purge,
)
from .sense import (
    Asc,
    ReservationConflict,
    ScsiError,
    SenseKey,
    StatusError,
    encode_sense,
    invalid_cdb_field,
    medium_not_present,
)
from .task import Nexus, Outcome, Result, Status, Task, TaskAttribute
from .unit_attention import UnitAttentions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DiskSettings:
    """What the configuration says of a disk, as far as the device server asks."""

    block_size: int = 512
    physical_block_size: int = 512
    read_only: bool = False
    write_cache: bool = True
    thin: bool = True
    removable: bool = False
    space_warning_bytes: int = 0  # soft threshold of what the medium has left; 0: none


@dataclass(slots=True)
class Statistics:
    """Plain counters since start, for LOG SENSE and the metrics."""

    commands: int = 0
    read_commands: int = 0
    read_bytes: int = 0
    read_errors: int = 0
    write_commands: int = 0
    write_bytes: int = 0
    write_errors: int = 0
    verify_commands: int = 0
    verify_bytes: int = 0
    verify_errors: int = 0
    check_conditions: int = 0


_SIMPLE = int(TaskAttribute.SIMPLE)  # an enumeration's member costs the hot path a look-up
_Row = Command | dict[int, Command] | None


class LogicalUnit:
    """One disk.

    `execute` and `data_out_length` are called by `TargetDevice`; the other attributes are what
    command handlers work on. `reserved_by` is the holder of a RESERVE, `reservations` the state of
    persistent reservations, `target_ports` the relative target ports through which the disk can be
    reached, `prevented_by` the nexuses that prevent medium removal, `ejected` whether the medium
    is out.
    """

    def __init__(
        self,
        name: str,
        store: BackingStore,
        identity: Identity,
        settings: DiskSettings,
        reservation_store: ReservationStore | None = None,
        reservations: State = NOTHING,
    ) -> None:
        self.name = name
        self.store = store
        self.identity = identity
        self.settings = settings
        self.block_size = settings.block_size
        self.read_only = settings.read_only or store.capabilities.read_only
        self.thin = settings.thin and store.capabilities.deallocate_granularity_bytes > 0
        self.anchors = self.thin and store.capabilities.anchors
        self.maximum_transfer_blocks = limits.MAXIMUM_TRANSFER_LENGTH_BYTES // self.block_size
        self.mode = ModeState(settings)
        self.attentions = UnitAttentions()
        self.statistics = Statistics()
        self.tasks = TaskSet()
        self.ranges = BlockRanges()
        self.ejected = False
        self._space_is_low = False
        self.target_ports: tuple[int, ...] = ()
        self.reservations_changing = asyncio.Lock()
        self._reservation_store = reservation_store or VolatileReservations()
        self._reservations = reservations
        self._reserved_by: Nexus | None = None
        self._renew_unhindered()
        self.prevented_by: set[Nexus] = set()
        self.commands = commands_for(thin=self.thin, anchors=self.anchors)
        self._rows = _dispatch_table(self.commands)
        self.block_count = store.size_bytes // self.block_size

    async def resize(self, size_bytes: int) -> None:
        """Change the store's size; every nexus hears of it (SBC-4 clause 4.4).

        Commands wait meanwhile. Raises StorageError; the size is mostly as it was then, and the
        store's in any case.
        """
        async with self.tasks.hold():
            try:
                await self.store.resize(size_bytes)
            finally:  # it may have that size, and not be sure that it keeps it
                self._take_size()

    def take_store(self, store: BackingStore) -> None:
        """Another store of the same disk from now on; for who holds the task set."""
        self.store = store
        self._take_size()

    def _take_size(self) -> None:
        before, self.block_count = self.block_count, self.store.size_bytes // self.block_size
        if self.block_count != before:
            self.attentions.establish_for_others(Asc.CAPACITY_DATA_HAS_CHANGED)

    def notice_space(self, available_bytes: int | None) -> None:
        """The medium has so much left: all hear when it falls below the soft threshold.

        SBC-4 clause 4.7.3.7.3; told again when it was above it in between.
        """
        low = available_bytes is not None and available_bytes < self.settings.space_warning_bytes
        if low and not self._space_is_low:
            logger.warning("%s: only %d bytes are left on its medium", self.name, available_bytes)
            self.attentions.establish_for_others(Asc.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED)
        self._space_is_low = low

    # The hot path: no calls that a plain READ or WRITE does not need.

    def execute(self, task: Task) -> Outcome:
        """Run a command: a Result at once, or a coroutine that must be awaited and not cancelled.

        Never raises, and neither does the coroutine.
        """
        cdb = task.cdb
        self.statistics.commands += 1
        try:
            row = self._rows[cdb[0]]
            if row.__class__ is not Command:
                row = self._find_service_action(task, row)
            pending = self.attentions.pending
            if (
                (pending and task.nexus in pending)
                or (
                    (unhindered := self._unhindered) is not None
                    and task.nexus.key not in unhindered
                )
                or self.ejected
                or (row.writes and (self.read_only or self.mode.software_write_protect))
            ):
                self._pass_gates(row, task)
            if int.from_bytes(cdb[: row.length], "big") & row.forbidden:
                raise _forbidden_bit(row, cdb)
            tasks = self.tasks
            if tasks.barriers or task.attribute > _SIMPLE:
                outcome = self._run_in_order(row, task)
            else:
                outcome = row.handler(self, task)
        except Exception as error:
            outcome = self.failure(error, task)
        if outcome.__class__ is Result:
            if self.tasks.unfinished:
                self.tasks.finish(task)
            return outcome
        self.tasks.enter(task, executing=True)
        return self._complete(task, outcome)  # type: ignore[arg-type]

    def data_out_length(self, task: Task) -> int:
        """How many bytes of data-out the CDB asks for, 0 for a command without data-out.

        Passes the gates, so that data is solicited only for a command that may run. Raises
        ScsiError and StatusError.
        """
        row = self._find(task)
        self._pass_gates(row, task)
        if int.from_bytes(task.cdb[: row.length], "big") & row.forbidden:
            raise _forbidden_bit(row, task.cdb)
        if row.data_out_length is None:
            return 0
        return row.data_out_length(self, task.cdb)

    def _refusal(self, error: ScsiError | StatusError) -> Result:
        if isinstance(error, StatusError):
            return Result(error.status)
        self.statistics.check_conditions += 1
        sense = encode_sense(error, self.mode.descriptor_sense)
        return Result(Status.CHECK_CONDITION, sense=sense)

    # Events around the commands

    def attach(self, nexus: Nexus, attention: Asc) -> None:
        """A nexus may reach this logical unit from now on; `attention` is its first condition."""
        self.attentions.attach(nexus)
        self.attentions.establish(nexus, attention)

    def detach(self, nexus: Nexus) -> None:
        """I_T nexus loss (SAM-6 clause 6.3.4); its tasks are the caller's to abort first."""
        self.attentions.detach(nexus)
        self.prevented_by.discard(nexus)
        if self.reserved_by is nexus:
            self.reserved_by = None

    def reset(self, attention: Asc) -> None:
        """The state after a logical unit reset (SAM-6 clause 6.3.3); all nexuses hear of it."""
        self.reserved_by = None
        self.prevented_by.clear()
        self.mode.reset()
        self.attentions.establish_for_others(attention)

    # Reservations

    @property
    def reserved_by(self) -> Nexus | None:
        """The holder of a RESERVE."""
        return self._reserved_by

    @reserved_by.setter
    def reserved_by(self, nexus: Nexus | None) -> None:
        self._reserved_by = nexus
        self._renew_unhindered()

    @property
    def reservations(self) -> State:
        """The persistent reservations; `change_reservations` changes them."""
        return self._reservations

    def _renew_unhindered(self) -> None:
        """What the hot path asks: None, or who needs not be looked at any closer."""
        reserved = self._reserved_by is not None
        self._unhindered = frozenset[NexusKey]() if reserved else self._reservations.unhindered

    def known_initiator_ports(self) -> list[str]:
        """The names of the initiator ports that are attached or registered, each once."""
        names = {nexus.initiator_port_name: None for nexus in self.attentions.nexuses}
        names |= {name: None for name, _ in self._reservations.registrations}
        return list(names)

    async def change_reservations(self, task: Task, request: Request) -> Result:
        """Do a PERSISTENT RESERVE OUT: compute, save, commit, tell, abort, answer GOOD.

        Nothing of it can be seen before it is durable, and nothing that it forbids reaches the
        medium after GOOD. Raises ReservationConflict and ScsiError.
        """
        async with self.reservations_changing:
            if task.aborted:
                raise TaskAborted
            if self._reserved_by is not None:
                raise ReservationConflict
            result = change(self._reservations, task.nexus.key, request, self.target_ports)
            try:
                await self._commit(result)
            except ReservationsNotSaved as error:
                logger.error("reservations of %s are not saved: %s", self.name, error)
                raise ScsiError(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE) from error
            ending = self._abort_preempted(result.aborts, task) + self._forbidden_writes()
        await self.tasks.ended(ending)
        return Result()

    async def purge_registrations(self, initiator: str) -> int:
        """Remove an initiator's registrations (`reservations.purge`), as an operator may.

        Returns how many there were, when none of their tasks runs any more. Raises
        ReservationsNotSaved.
        """
        async with self.reservations_changing:
            result = purge(self._reservations, initiator)
            await self._commit(result)
            ending = self._abort_preempted(result.aborts) + self._forbidden_writes()
        await self.tasks.ended(ending)
        return len(result.aborts)

    async def _commit(self, result: Change) -> None:
        if result.state != self._reservations:
            await self._reservation_store.save(self.name, result.state)
        self._reservations = result.state
        self._renew_unhindered()
        for nexus in self.attentions.nexuses:
            if (asc := result.attentions.get(nexus.key)) is not None:
                self.attentions.establish(nexus, asc)

    def _abort_preempted(
        self, preempted: frozenset[NexusKey], by: Task | None = None
    ) -> list[Task]:
        """PREEMPT AND ABORT: all their tasks but the one that asks, and PREVENTs (5.14.11.5)."""
        if not preempted:
            return []
        chosen = self.tasks.select(lambda it: it is not by and it.nexus.key in preempted)
        self.abort(chosen, by=by.nexus if by is not None else None)
        self.prevented_by -= {nexus for nexus in self.prevented_by if nexus.key in preempted}
        return chosen

    def _forbidden_writes(self) -> list[Task]:
        """What began before a reservation that forbids it, and may still reach the medium.

        A PREEMPT without AND ABORT lets it end (SPC-5 clause 5.14.11.4), and so does any other
        request; who asked may write as soon as he has his GOOD, so it comes after that end. What
        waits for its turn or for its data has not begun: it will meet the reservation.
        """
        return [
            task
            for task in self.tasks.begun()
            if self._find(task).writes
            and self._reservations.conflicts(task.nexus.key, Access.WRITES)
        ]

    def abort(self, tasks: list[Task], by: Nexus | None = None) -> list[Task]:
        """Abort tasks on behalf of the nexus `by` (None: of nobody who would be told).

        With TAS=1 a task of another nexus is answered with TASK ABORTED (SPC-5 clause 7.5.8), so
        `answer_aborted` is set on it. Returns those that were not aborted before: whoever is first
        decides whether there is an answer.
        """
        alive = [task for task in tasks if not task.aborted]
        for task in alive:
            task.answer_aborted = (
                self.mode.task_aborted_status and by is not None and task.nexus is not by
            )
        self.tasks.abort(alive)
        self.ranges.wake()
        return alive

    # Off the hot path

    def _find(self, task: Task) -> Command:
        row = self._rows[task.cdb[0]]
        return row if isinstance(row, Command) else self._find_service_action(task, row)

    def _find_service_action(self, task: Task, rows: _Row) -> Command:
        assert not isinstance(rows, Command)
        row = rows.get(task.cdb[1] & SERVICE_ACTION_MASK) if rows else None
        if row is not None:
            return row
        self._report_attention(task)  # comes before INVALID COMMAND OPERATION CODE
        if rows:
            raise invalid_cdb_field(1, 4)
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_COMMAND_OPERATION_CODE)

    def _report_attention(self, task: Task) -> None:
        if self.attentions.pending:
            asc = self.attentions.take(task.nexus)
            if asc is not None:
                raise ScsiError(SenseKey.UNIT_ATTENTION, asc)

    def _pass_gates(self, row: Command, task: Task) -> None:
        """Raise what keeps the command from running, in the order of precedence (SAM-6 5.3.3)."""
        if not row.passes_unit_attention:
            self._report_attention(task)
        if self._unhindered is not None and self._is_reserved_for_others(row, task):
            raise ReservationConflict
        if self.ejected and not row.allowed_while_ejected:
            raise medium_not_present()
        if row.writes:
            if self.read_only:
                raise ScsiError(SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)
            if self.mode.software_write_protect:
                raise ScsiError(SenseKey.DATA_PROTECT, Asc.LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED)

    def _is_reserved_for_others(self, row: Command, task: Task) -> bool:
        if self._reservations.lost and not row.allowed_while_lost:
            asc = Asc.PERSISTENT_RESERVATION_INFORMATION_LOST
            raise ScsiError(SenseKey.DATA_PROTECT, asc)
        holder = self._reserved_by
        if holder is None:
            conflict = self._reservations.conflicts(task.nexus.key, row.access)
        elif row.access is Access.PERSISTENT:
            conflict = True  # even for the holder of the RESERVE (SPC-2 clause 5.5.1)
        else:
            conflict = holder is not task.nexus and row.access not in PASSES_RESERVE
        return conflict and not (row.harmless and row.harmless(task.cdb))

    def _run_in_order(self, row: Command, task: Task) -> Outcome:
        if task.attribute >= TaskAttribute.ACA:
            # No command causes an ACA condition (NORMACA=0), so none can belong to one.
            raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_MESSAGE_ERROR)
        if self.tasks.must_wait(task):
            self.tasks.queue(task)
            return self._run_later(row, task)
        return row.handler(self, task)

    async def _run_later(self, row: Command, task: Task) -> Result:
        await self.tasks.turn(task)
        self._pass_gates(row, task)  # the world may have changed meanwhile
        outcome = row.handler(self, task)
        return outcome if isinstance(outcome, Result) else await outcome

    async def _complete(self, task: Task, pending: Coroutine[Any, Any, Result]) -> Result:
        try:
            result = await pending
        except TaskAborted:
            result = Result()  # never sent: `task.aborted` says so
        except Exception as error:
            result = self.failure(error, task)
        finally:
            self.tasks.finish(task)
        if task.aborted and task.answer_aborted:
            return Result(Status.TASK_ABORTED)
        return result

    def failure(self, error: Exception, task: Task) -> Result:
        """The Result of a command that raised; anything unexpected is logged with its trace."""
        if isinstance(error, ScsiError | StatusError):
            return self._refusal(error)
        if isinstance(error, StorageError):
            writing = self._find(task).access is Access.WRITES
            return self._refusal(self.storage_failure(error, writing=writing))
        logger.error(
            "unexpected error in command %02Xh on %s", task.cdb[0], self.name, exc_info=error
        )
        return self._refusal(ScsiError(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE))

    def storage_failure(self, error: StorageError, *, writing: bool) -> ScsiError:
        """The sense data for a failed read or write of the store; counts and logs it."""
        if writing:
            self.statistics.write_errors += 1
        else:
            self.statistics.read_errors += 1
        logger.error("storage of %s: %s", self.name, error)
        sense_key, asc = (_WRITE_SENSE if writing else _READ_SENSE).get(
            error.fault, (SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)
        )
        information = None
        if sense_key is SenseKey.MEDIUM_ERROR and error.offset_bytes is not None:
            information = error.offset_bytes // self.block_size
        return ScsiError(sense_key, asc, information=information)


_Sense = tuple[SenseKey, Asc]

# What a storage fault is to an initiator. WRITE ERROR (0Ch/00h) is not assigned to direct access
# devices (SPC-5 annex F), PERIPHERAL DEVICE WRITE FAULT is. A backing file that is gone may come
# back, so the logical unit is not ready rather than without medium: hosts retry that.
_READ_SENSE: dict[StorageFault, _Sense] = {
    StorageFault.MEDIUM: (SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR),
    StorageFault.SHORT: (SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR),
    StorageFault.GONE: (SenseKey.NOT_READY, Asc.LOGICAL_UNIT_NOT_READY_CAUSE_NOT_REPORTABLE),
    StorageFault.MISSING: (SenseKey.NOT_READY, Asc.LOGICAL_UNIT_NOT_READY_CAUSE_NOT_REPORTABLE),
}
_WRITE_SENSE: dict[StorageFault, _Sense] = _READ_SENSE | {
    StorageFault.MEDIUM: (SenseKey.MEDIUM_ERROR, Asc.PERIPHERAL_DEVICE_WRITE_FAULT),
    StorageFault.SHORT: (SenseKey.MEDIUM_ERROR, Asc.PERIPHERAL_DEVICE_WRITE_FAULT),
    StorageFault.OUT_OF_SPACE: (
        SenseKey.DATA_PROTECT,
        Asc.SPACE_ALLOCATION_FAILED_WRITE_PROTECT,
    ),
    StorageFault.READ_ONLY: (SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED),
}


def _dispatch_table(commands: tuple[Command, ...]) -> list[_Row]:
    """Rows by operation code; a dictionary by service action where there are such."""
    table: list[_Row] = [None] * 256
    for row in commands:
        if row.service_action is None:
            table[row.opcode] = row
        else:
            actions = table[row.opcode] or {}
            assert isinstance(actions, dict)
            actions[row.service_action] = row
            table[row.opcode] = actions
    return table


def _forbidden_bit(row: Command, cdb: bytes) -> ScsiError:
    """INVALID FIELD IN CDB, pointing at the first reserved bit that is set."""
    offending = int.from_bytes(cdb[: row.length], "big") & row.forbidden
    highest = offending.bit_length() - 1
    return invalid_cdb_field(row.length - 1 - highest // 8, highest % 8)
