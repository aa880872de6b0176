"""A live server made wrong on purpose, to see whether the validator notices.

Each method of `Breaker` bends one thing, from the outside as a target's fault would look like; the
monkeypatch puts it back. Knows no check.
"""

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pyiscsi_target.scsi import logical_unit, vpd
from pyiscsi_target.scsi.logical_unit import LogicalUnit
from pyiscsi_target.scsi.reservations import (
    Access,
    Change,
    NexusKey,
    Request,
    ServiceAction,
    State,
    change,
)
from pyiscsi_target.scsi.sense import Asc, ReservationConflict, ScsiError, SenseKey, encode_sense
from pyiscsi_target.scsi.target_device import TargetDevice
from pyiscsi_target.scsi.task import Nexus, Result, Status, Task
from tests.support.live import Live

Answer = Callable[[Task, Result], Result]
Rule = Callable[[State, NexusKey, Request, Change], Change]

CONFLICT = Result(Status.RESERVATION_CONFLICT)


def illegal_request(task: Task, result: Result) -> Result:
    """An `Answer`: as a target that does not know the command."""
    error = ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_COMMAND_OPERATION_CODE)
    return Result(Status.CHECK_CONDITION, sense=encode_sense(error, descriptor=False))


def with_bytes(result: Result, **at: int) -> Result:
    """The result with bytes of its data replaced: `_3=0x40` for byte 3."""
    if result.data is None:
        return result
    data = bytearray(result.data)
    for position, value in at.items():
        data[int(position.removeprefix("_"))] = value
    return Result(result.status, bytes(data))


class Breaker:
    """Bends the server of one test."""

    def __init__(self, patch: pytest.MonkeyPatch, live: Live) -> None:
        self.patch = patch
        self.live = live
        live.allowed_error = ""  # whatever it logs, it is broken

    # Commands

    def answer(
        self, opcode: int, answer: Answer, *, when: Callable[[Task], bool] = lambda task: True
    ) -> None:
        """Replace the results of a command; it is carried out all the same."""
        real = TargetDevice.execute

        def execute(device: TargetDevice, task: Task) -> Result | Coroutine[Any, Any, Result]:
            outcome = real(device, task)
            if task.cdb[0] != opcode or not when(task):
                return outcome
            if isinstance(outcome, Result):
                return answer(task, outcome)
            return _answer_later(task, outcome, answer)

        self.patch.setattr(TargetDevice, "execute", execute)

    def instead(self, opcode: int, answer: Callable[[Task], Result | None]) -> None:
        """Answer a command without carrying it out, where `answer` is not None."""
        real = TargetDevice.execute

        def execute(device: TargetDevice, task: Task) -> Result | Coroutine[Any, Any, Result]:
            mine = answer(task) if task.cdb[0] == opcode else None
            return real(device, task) if mine is None else mine

        self.patch.setattr(TargetDevice, "execute", execute)

    def page(self, code: int, content: Callable[[Nexus, bytes], bytes]) -> None:
        """Replace the content of a vital product data page, as a nexus sees it."""
        real = vpd.PAGES.get(code)

        def bent(lu: LogicalUnit, nexus: Nexus) -> bytes:
            return content(nexus, real(lu, nexus) if real else b"")

        self.patch.setitem(vpd.PAGES, code, bent)

    def designations(self, build: Callable[[Any], bytes]) -> None:
        """Replace the logical unit's designators in page 83h."""
        self.patch.setattr(vpd, "logical_unit_designations", build)

    # Reservations

    def reservations(self, rule: Rule, *actions: ServiceAction) -> None:
        """Replace what comes of PERSISTENT RESERVE OUT, of some actions or of all."""

        def bent(
            state: State, requester: NexusKey, request: Request, ports: tuple[int, ...] = ()
        ) -> Change:
            if actions and request.action not in actions:
                return change(state, requester, request, ports)
            try:
                right = change(state, requester, request, ports)
            except ReservationConflict:
                right = Change(REFUSED)
            bent = rule(state, requester, request, right)
            if bent.state is REFUSED:
                raise ReservationConflict
            return bent

        self.patch.setattr(logical_unit, "change", bent)

    def access(self, conflicts: Callable[[State, NexusKey, Access], bool]) -> None:
        """Replace the judgement whether a command conflicts."""
        self.patch.setattr(State, "conflicts", conflicts)
        self.patch.setattr(State, "unhindered", property(lambda state: frozenset()))

    def full_access(self, has: Callable[[State, NexusKey], bool]) -> None:
        """Replace the judgement whom the reservation leaves alone."""
        self.patch.setattr(State, "has_full_access", has)

    # Nexuses

    def forget_registrations(self) -> None:
        """A session's end takes its registration away."""
        real = TargetDevice.detach

        def detach(device: TargetDevice, nexus: Nexus, *, lost: bool) -> None:
            real(device, nexus, lost=lost)
            for unit in nexus.luns.values():
                state = unit.reservations
                if nexus.key in state.registrations:
                    request = Request(ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY)
                    unit._reservations = change(state, nexus.key, request).state
                    unit._renew_unhindered()

        self.patch.setattr(TargetDevice, "detach", detach)

    def key_registrations_to_sessions(self) -> None:
        """Each session is a nexus of its own, whatever its name and ISID."""
        real = TargetDevice.attach
        sessions = 0

        def attach(device: TargetDevice, nexus: Nexus) -> None:
            nonlocal sessions
            sessions += 1
            nexus.key = (f"{nexus.initiator_port_name}#{sessions}", nexus.relative_target_port)
            real(device, nexus)

        self.patch.setattr(TargetDevice, "attach", attach)


REFUSED = State(generation=-1)
"""The state of a Change that stands for RESERVATION CONFLICT."""


async def _answer_later(task: Task, outcome: Coroutine[Any, Any, Result], answer: Answer) -> Result:
    return answer(task, await outcome)
