"""What a process cost, from /proc (proc(5)): CPU seconds and resident memory."""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads, ended ones too."""
    stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _status_bytes(pid: int, key: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    match = re.search(rf"(?m)^{key}:\s+(\d+) kB", status)
    if match is None:
        raise LookupError(f"no {key} of process {pid}")
    return int(match[1]) * 1024


def resident_bytes(pid: int) -> int:
    return _status_bytes(pid, "VmRSS")


def peak_resident_bytes(pid: int) -> int:
    return _status_bytes(pid, "VmHWM")


def reset_peak(pid: int) -> None:
    """Let the peak start from now; without the right to do so it stays the process's own."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


@dataclass(frozen=True)
class Cost:
    """CPU time and peak memory of a server over one load."""

    cpu_s: float
    peak_bytes: int


class Meter:
    """`with Meter(pid) as meter: load(); meter.cost`"""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.cost = Cost(0.0, 0)

    def __enter__(self) -> "Meter":
        reset_peak(self._pid)
        self._started_s = cpu_seconds(self._pid)
        return self

    def __exit__(self, *_: object) -> None:
        spent = cpu_seconds(self._pid) - self._started_s
        self.cost = Cost(spent, peak_resident_bytes(self._pid))
