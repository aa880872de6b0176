"""Child processes whose progress is read from their output, never guessed from the clock.

Knows nothing of iSCSI. Every child is ended by its own pid and reaped, whatever the test did.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

INSTALL_HINT = "run scripts/install-test-tools"


def tool(name: str) -> str:
    """The full path of a client program; a missing one is an error, not a reason to skip."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise FileNotFoundError(f"{name} is not installed: {INSTALL_HINT}")
    return path


def run_tool(
    command: Sequence[str | Path],
    *,
    timeout_s: float = 60,
    check: bool = True,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a client to its end; with `check` a failure shows all that it printed."""
    done = subprocess.run(
        [tool(str(command[0])), *map(str, command[1:])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        env={**os.environ, **(env or {})},
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(
            f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done


class Child:
    """A running program; `lines` collects its standard error (with `merge`: all its output)."""

    alive: ClassVar[set[int]] = set()

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        merge: bool = False,
    ) -> None:
        self.command = [str(part) for part in command]
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            self.command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if merge else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if merge else subprocess.PIPE,
            text=True,
            errors="replace",
        )
        stream = self._process.stdout if merge else self._process.stderr
        assert stream is not None
        self._stream = stream
        self.pid = self._process.pid
        self.alive.add(self.pid)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._stream:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def matches(self, pattern: str) -> list[re.Match[str]]:
        """Every line so far that contains the pattern."""
        return [match for line in list(self.lines) if (match := re.search(pattern, line))]

    def wait_for_line(self, pattern: str, *, timeout_s: float = 30) -> re.Match[str]:
        """The first line that contains the pattern, waiting for it; the child's end is an error."""
        with self._news:
            self._news.wait_for(lambda: self.matches(pattern) or self._ended, timeout_s)
            if found := self.matches(pattern):
                return found[0]
        state = "ended" if self._ended else f"said nothing of it within {timeout_s} s"
        raise AssertionError(f"{self.command[:4]} {state}; wanted {pattern!r}:\n{self.output}")

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, *, timeout_s: float = 30) -> int:
        """The exit status, once all output was read."""
        status = self._process.wait(timeout_s)
        self._reader.join(timeout_s)
        self._stream.close()
        self.alive.discard(self.pid)
        return status

    def kill(self) -> int:
        """SIGKILL, and reap."""
        self._process.kill()
        return self.wait()

    def stop(self, *, timeout_s: float = 20) -> int:
        """SIGTERM, and SIGKILL after the bound; the exit status tells which of them it was."""
        self._process.terminate()
        try:
            return self.wait(timeout_s=timeout_s)
        except subprocess.TimeoutExpired:
            return self.kill()


@contextlib.contextmanager
def child(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    merge: bool = False,
) -> Iterator[Child]:
    """A child that is certainly gone when the block ends."""
    process = Child(command, cwd=cwd, env=env, merge=merge)
    try:
        yield process
    finally:
        if process.running:
            process.kill()
        else:
            process.wait()
