"""Tables of what was measured, the same on the screen and in RESULTS.md."""

import datetime
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.scenarios import Figure, Sample, Scenario
from bench.subjects import python_version
from tests.support.images import GIB, MIB
from tests.support.server import ROOT

MARK = {True: "yes", False: "**no**", None: ""}


@dataclass(frozen=True)
class Paired:
    """A scenario's samples, round by round, of this tree and of the other server."""

    scenario: Scenario
    rounds: Sequence[tuple[Sample, Sample]]

    @property
    def ratios(self) -> list[float]:
        return [ours.operations_per_s / theirs.operations_per_s for ours, theirs in self.rounds]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def holds(self) -> bool | None:
        return None if self.scenario.goal is None else self.ratio >= self.scenario.goal


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up."""
    lines = [head, ["---" for _ in head], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = (
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(f"| {line} |" for line in padded)


def _throughput(scenario: Scenario, operations_per_s: float) -> str:
    if scenario.block_bytes < MIB // 4:
        return f"{operations_per_s / 1000:.1f} k/s"
    return f"{operations_per_s * scenario.block_bytes / GIB:.2f} GiB/s"


def _median(samples: Sequence[Sample], name: str) -> float:
    values: list[float] = [getattr(sample, name) for sample in samples]
    return statistics.median(values)


def paired_table(names: tuple[str, str], results: Sequence[Paired]) -> str:
    """Throughput and its ratio, CPU time and memory of both servers."""
    a, b = names
    head = ["load", a, b, "ratio", "each round", "goal", "reached"]
    head += [f"CPU s/GiB {a}", b, f"CPU s {a}", b, f"peak MiB {a}", b]
    return table(head, [_paired_row(result) for result in results])


def _paired_row(result: Paired) -> list[str]:
    scenario = result.scenario
    sides = list(zip(*result.rounds, strict=True))
    goal = "" if scenario.goal is None else f"{scenario.goal}x"
    row = [scenario.title]
    row += [_throughput(scenario, _median(side, "operations_per_s")) for side in sides]
    row += [f"{result.ratio:.2f}x", " ".join(f"{ratio:.2f}" for ratio in result.ratios)]
    row += [goal, MARK[result.holds]]
    row += [f"{_median(side, 'cpu_s_per_gib'):.3f}" for side in sides]
    row += [f"{_median(side, 'cpu_s'):.2f}" for side in sides]
    row += [f"{_median(side, 'peak_bytes') / MIB:.0f}" for side in sides]
    return row


def figure_table(figures: Sequence[Figure]) -> str:
    rows = [[f.title, f.value, f.goal, MARK[f.holds]] for f in figures]
    return table(["figure", "value", "goal", "reached"], rows)


# The machine


def _first_match(path: str, pattern: str) -> str:
    try:
        match = re.search(pattern, Path(path).read_text("utf-8"))
    except OSError:
        return ""
    return match[1].strip() if match else ""


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except OSError:
        return ""
    return done.stdout.strip()


def _packages(*names: str) -> str:
    return _said("dpkg-query", "-W", "-f", "${Package} ${Version}, ", *names).rstrip(", ")


def _version_of_the_tree() -> str:
    commit = _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or "no commit"
    dirty = _said("git", "-C", str(ROOT), "status", "--porcelain", "--", "pyiscsi_target")
    return f"{commit}, with local changes" if dirty else commit


def machine(images: Path) -> Iterator[tuple[str, str]]:
    """What the figures depend on."""
    memory_kib = int(_first_match("/proc/meminfo", r"MemTotal:\s+(\d+)") or 0)
    system = _first_match("/etc/os-release", r'PRETTY_NAME="([^"]*)"')
    yield "date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    yield "this tree", _version_of_the_tree()
    processor = _first_match("/proc/cpuinfo", r"model name\s*: (.*)")
    yield "processor", f"{os.cpu_count()} x {processor}"
    yield "memory", f"{memory_kib / (1 << 20):.0f} GiB"
    yield "system", f"{system}, Linux {platform.release()}, {python_version()}"
    yield "images on", _said("stat", "--file-system", "--format=%T", str(images))
    yield "programs", _packages("tgt", "libiscsi-bin", "qemu-utils")


def document(
    terms: str,
    images: Path,
    names: tuple[str, str],
    paired: Sequence[Paired],
    figures: list[Figure],
) -> str:
    """RESULTS.md."""
    parts = ["# Results", "Written by `make bench`; do not edit.", terms]
    parts.append(table(["machine", ""], [list(item) for item in machine(images)]))
    if paired:
        parts += [f"## Beside {names[1]}", paired_table(names, paired)]
    if figures:
        parts += ["## By itself", figure_table(figures)]
    return "\n\n".join(parts) + "\n"
