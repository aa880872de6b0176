"""What a validation is made of: checks, their verdicts, and the report that they add up to.

Plain values; knows neither the wire nor how a report looks.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .rig import Rig


class Verdict(Enum):
    """What became of one check."""

    PASS = "pass"
    FAIL = "fail"
    WARN = "warn"
    SKIP = "skip"


class Importance(Enum):
    """What a shortcoming means: without REQUIRED no cluster; the others make a WARN."""

    REQUIRED = "required"
    RECOMMENDED = "recommended"
    INFORMATIONAL = "informational"


class Area(Enum):
    """The parts of a report, in its order."""

    CONNECTION = "Discovery and login"
    IDENTITY = "Identity"
    DEVICE = "Device"
    REGISTRATION = "Registrations"
    RESERVATION = "Reservations"
    PREEMPTION = "Preemption"
    SURVIVAL = "Survival of connection loss"
    ARBITRATION = "Arbitration"
    DATA = "Data"
    PROVISIONING = "Thin provisioning and copy offload"
    CLEAN_UP = "Clean-up"


class Conclusion(Enum):
    """The verdict on the target."""

    READY = "ready"
    NOT_READY = "not_ready"
    UNPROVEN = "unproven"


@dataclass(frozen=True, slots=True)
class Observation:
    """What a passed check saw; `figures` are its measurements, with units in their names."""

    seen: str
    figures: Mapping[str, float] = field(default_factory=dict)


class Finding(Exception):
    """A check is not satisfied: a FAIL where it is required, else a WARN.

    `fix` replaces the advice of the check's row where the cause is known better; `warns` makes it
    a WARN whatever the row says.
    """

    def __init__(self, seen: str, expected: str, *, fix: str = "", warns: bool = False) -> None:
        super().__init__(seen)
        self.seen = seen
        self.expected = expected
        self.fix = fix
        self.warns = warns


class Skipped(Exception):
    """A check cannot say anything here. `prevented`: it should have, and something was in the way.

    Not prevented is what the target does not offer, or what the user did not allow.
    """

    def __init__(self, reason: str, *, prevented: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.prevented = prevented


CheckFunction = Callable[["Rig"], Awaitable[Observation | str]]
Gate = Callable[["Rig"], Awaitable[None]]  # raises Skipped, or Finding


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table.

    `proves` says what a pass means, `clause` where the standard asks for it, `windows` which test
    of Windows' cluster validation asks the same, `fix` what to do about a failure. `gates` are
    passed first, in order: they bring nodes and disk into the state from which `run` starts.
    """

    id: str
    area: Area
    title: str
    proves: str
    clause: str
    importance: Importance
    run: CheckFunction
    gates: tuple[Gate, ...] = ()
    windows: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A check and what became of it. `prevented` as in `Skipped`."""

    check: Check
    verdict: Verdict
    seen: str
    expected: str = ""
    fix: str = ""
    prevented: bool = False
    figures: Mapping[str, float] = field(default_factory=dict)
    duration_s: float = 0.0

    @property
    def leaves_doubt(self) -> bool:
        """Whether something that a cluster needs was not looked at."""
        required = self.check.importance is Importance.REQUIRED
        return self.verdict is Verdict.SKIP and self.prevented and required


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A simulated node: its iSCSI name, and the nexuses (portal, ISID) that it used."""

    number: int
    initiator_name: str
    nexuses: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What was validated. `lun` is None where no disk was found; sizes are bytes."""

    portal: str
    name: str
    portals: tuple[str, ...] = ()
    lun: int | None = None
    disks: tuple[int, ...] = ()
    vendor: str = ""
    product: str = ""
    revision: str = ""
    serial: str = ""
    size_bytes: int | None = None
    block_size: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A whole validation.

    `refused`: the target refused every node's login; why, and what to do. Such a report ends with
    the login, since nothing was seen of the target.
    """

    target: TargetFacts
    nodes: Sequence[NodeFacts]
    results: Sequence[CheckResult]
    started_at: datetime
    duration_s: float
    writes_allowed: bool
    interrupted: bool = False
    refused: str = ""

    @property
    def counts(self) -> Mapping[Verdict, int]:
        """How many checks ended in each verdict."""
        counted = Counter(result.verdict for result in self.results)
        return {verdict: counted[verdict] for verdict in Verdict}

    @property
    def doubts(self) -> int:
        """How many required checks were prevented."""
        return sum(result.leaves_doubt for result in self.results)

    @property
    def conclusion(self) -> Conclusion:
        """One failed check is one too many; without any, what was not looked at is a doubt."""
        if self.counts[Verdict.FAIL]:
            return Conclusion.NOT_READY
        return Conclusion.UNPROVEN if self.doubts or self.interrupted else Conclusion.READY

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        if self.refused:
            return f"NOT READY for a cluster: {self.refused}"
        counts = self.counts
        passed, failed = counts[Verdict.PASS], counts[Verdict.FAIL]
        warnings = _number(counts[Verdict.WARN], "warning")
        rest = f"{passed} passed, {warnings}, {counts[Verdict.SKIP]} skipped"
        if self.conclusion is Conclusion.NOT_READY:
            return f"NOT READY for a cluster: {_number(failed, 'check')} failed ({rest})"
        if self.conclusion is Conclusion.READY:
            return f"READY for a cluster: no check failed ({rest})"
        if self.interrupted:
            return f"UNPROVEN: interrupted before the end ({rest})"
        return f"UNPROVEN: {_number(self.doubts, 'required check')} could not be run ({rest})"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
