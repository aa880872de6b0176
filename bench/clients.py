"""The load programs: each drives one LUN for about a given time and says how much it moved."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.process import run_tool
from tests.support.server import ROOT

MARGIN_S = 60
CALIBRATION_S = 0.4
MAX_COUNT = 2**31 - 1


@dataclass(frozen=True)
class Load:
    """One shape of load; `pin` is a CPU list for `taskset`, empty for none."""

    block_bytes: int
    depth: int
    duration_s: float
    pin: str = ""

    def pinned(self, *command: str) -> list[str]:
        return ["taskset", "-c", self.pin, *command] if self.pin else list(command)


@dataclass(frozen=True)
class Moved:
    """What a client moved: `operations_per_s` and the bytes of the whole run."""

    operations_per_s: float
    total_bytes: int


Client = Callable[[str, Load], Moved]


def _perf(url: str, load: Load, *options: str) -> Moved:
    blocks = load.block_bytes // 512
    seconds = max(1, round(load.duration_s))
    size = ["-m", str(load.depth), "-b", str(blocks), "-t", str(seconds)]
    command = load.pinned("iscsi-perf", *size, *options, url)
    output = run_tool(command, timeout_s=seconds + MARGIN_S).stdout
    # The last line is the average since the start.
    operations_per_s = float(re.findall(r"iops average (\d+)", output)[-1])
    return Moved(operations_per_s, round(operations_per_s * seconds) * load.block_bytes)


def perf_sequential(url: str, load: Load) -> Moved:
    """iscsi-perf, reading on and on."""
    return _perf(url, load)


def perf_random(url: str, load: Load) -> Moved:
    """iscsi-perf, reading at random."""
    return _perf(url, load, "--random")


def qemu_count(url: str, load: Load, count: int, *options: str) -> float:
    """Seconds that qemu-img says `count` requests took."""
    shape = ["-c", str(count), "-d", str(load.depth), "-s", str(load.block_bytes)]
    command = load.pinned("qemu-img", "bench", "-f", "raw", "-t", "none", *shape, *options, url)
    output = run_tool(command, timeout_s=load.duration_s * 20 + MARGIN_S).stdout
    match = re.search(r"Run completed in ([\d.]+) seconds", output)
    if match is None:
        raise AssertionError(output)
    return max(float(match[1]), 1e-3)


def _qemu(url: str, load: Load, *options: str) -> Moved:
    """qemu-img counts requests, not time: short runs find the count for the duration."""
    count = max(load.depth * 4, 64)
    took_s = qemu_count(url, load, count, *options)
    total = count
    while took_s < CALIBRATION_S:
        count = round(count * min(CALIBRATION_S / took_s * 1.2, 32)) + 1
        took_s = qemu_count(url, load, count, *options)
        total += count
    count = min(round(count / took_s * load.duration_s) + 1, MAX_COUNT)
    took_s = qemu_count(url, load, count, *options)
    return Moved(count / took_s, (total + count) * load.block_bytes)


def qemu_write(url: str, load: Load) -> Moved:
    """qemu-img bench, writing on and on."""
    return _qemu(url, load, "-w")


def qemu_read(url: str, load: Load) -> Moved:
    """qemu-img bench, reading on and on."""
    return _qemu(url, load)


def generator_command(url: str, load: Load, *options: str) -> list[str]:
    """The project's own generator: it speaks both digests, which Debian's clients cannot."""
    shape = ["--block", str(load.block_bytes), "--depth", str(load.depth)]
    seconds = ["--seconds", str(load.duration_s)]
    return load.pinned(sys.executable, "-m", "bench.generator", *shape, *seconds, *options, url)


GENERATOR_ENV = {"PYTHONPATH": str(ROOT)}


def generator_result(output: str) -> Moved:
    return Moved(**json.loads(output.splitlines()[-1]))


def own_client(*options: str) -> Client:
    """The generator as a client, from start to end."""

    def run(url: str, load: Load) -> Moved:
        command = generator_command(url, load, *options)
        timeout_s = load.duration_s + MARGIN_S
        return generator_result(run_tool(command, timeout_s=timeout_s, env=GENERATOR_ENV).stdout)

    return run
