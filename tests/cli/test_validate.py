"""`validate`: its arguments, its outputs, its exit status; and once as a process, to be killed."""

import asyncio
import importlib
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pyiscsi_target.cli import main
from pyiscsi_target.client import ConnectionLost, Portal
from pyiscsi_target.scsi.reservations import Change, NexusKey, Request, ServiceAction, State
from pyiscsi_target.validate import Conclusion, Options, Report, node_names
from tests.support.broken_target import Breaker
from tests.support.live import config_of, serving
from tests.support.reports import RESULTS, report
from tests.support.server import TARGET

PATIENCE_S = 60.0
URL = f"iscsi://127.0.0.1:3260/{TARGET}"
READY = replace(report(), results=RESULTS[:1])


class Validator:
    """Stands in for `validate`: gives `report` and keeps the options."""

    report: Report | Exception = READY
    options: Options

    async def __call__(self, options: Options, *, on_progress: Any) -> Report:
        self.options = options
        on_progress(RESULTS[0].check, None)
        on_progress(RESULTS[0].check, RESULTS[0])
        if isinstance(self.report, Exception):
            raise self.report
        return self.report


@pytest.fixture
def validator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Validator]:
    command = importlib.import_module("pyiscsi_target.cli.validate")
    stand_in = Validator()
    monkeypatch.setattr(command, "validate", stand_in)
    handler = signal.getsignal(signal.SIGTERM)
    yield stand_in
    signal.signal(signal.SIGTERM, handler)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["validate", *arguments])


# Options


def test_what_is_asked_for_by_default(validator: Validator) -> None:
    assert run(URL).exit_code == 0
    options = validator.options
    assert (options.url.target, options.url.lun) == (TARGET, None)
    assert options.initiator_names == node_names(3)
    assert options.credentials is None
    assert not options.idle
    assert not options.allow_writes
    assert (options.challenge_wait_s, options.timeout_s) == (1.0, 10.0)


def test_every_option(validator: Validator, tmp_path: Path) -> None:
    chap = tmp_path / "chap.toml"
    chap.write_text('name = "node"\nsecret = "twelve bytes"\n')
    chap.chmod(0o600)
    result = run(
        *(URL, "--lun", "2", "--nodes", "2", "--initiator-name", "iqn.2026-11.lab.example:n{n}"),
        *(
            "--chap-file",
            str(chap),
            "--idle",
            "--allow-writes",
            "--challenge-wait",
            "7",
            "--timeout",
            "3",
        ),
    )
    assert result.exit_code == 0
    options = validator.options
    assert options.url.lun == 2
    assert options.initiator_names == (
        "iqn.2026-11.lab.example:n1",
        "iqn.2026-11.lab.example:n2",
    )
    assert options.credentials is not None
    assert options.credentials.name == "node"
    assert options.idle
    assert options.allow_writes
    assert (options.challenge_wait_s, options.timeout_s) == (7.0, 3.0)


def test_a_name_for_each_node_is_as_many_nodes(validator: Validator) -> None:
    names = ("iqn.2026-11.lab.example:a", "iqn.2026-11.lab.example:b")
    assert run(URL, "--initiator-name", names[0], "--initiator-name", names[1]).exit_code == 0
    assert validator.options.initiator_names == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument 'URL'"),
        (("http://x/y",), "is not iscsi://HOST[:PORT]/TARGET[/LUN]"),
        (("iscsi://127.0.0.1/disk",), "'disk' is no target name"),
        ((f"iscsi://me:secret@127.0.0.1/{TARGET}",), "a URL holds no user and no secret"),
        ((f"{URL}/1", "--lun", "2"), "the URL names LUN 1, --lun 2"),
        ((URL, "--nodes", "1"), "1 is not in the range 2<=x<=8"),
        ((URL, "--nodes", "9"), "9 is not in the range 2<=x<=8"),
        (
            (URL, "--nodes", "3", "--initiator-name", "iqn.a:x", "--initiator-name", "iqn.a:y"),
            "2 initiator names for 3 nodes",
        ),
        ((URL, *(["--initiator-name", "iqn.a:x"] * 9)), "at most 8 nodes"),
        ((URL, "--chap-file", "/nowhere"), "/nowhere: No such file or directory"),
        ((URL, "--timeout", "0"), "0 is not in the range"),
    ],
)
def test_bad_usage(validator: Validator, arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "secret@" not in result.stderr


# Outcomes


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (READY, 0),
        (report(), 1),
        (replace(report(), results=RESULTS[3:]), 1),
        (replace(READY, interrupted=True), 130),
        (ConnectionLost(Portal("127.0.0.1", 3260), "Connection refused"), 2),
    ],
    ids=["ready", "failed", "unproven", "interrupted", "unreachable"],
)
def test_exit_status(validator: Validator, outcome: Report | Exception, status: int) -> None:
    validator.report = outcome
    result = run(URL)
    assert result.exit_code == status
    if isinstance(outcome, Report):
        assert result.stdout.splitlines()[-1] == outcome.headline
    else:
        assert result.stdout == ""
        assert "cannot reach the target: 127.0.0.1:3260: Connection refused" in result.stderr


def test_a_target_that_refuses_every_node_is_one_line(validator: Validator, tmp_path: Path) -> None:
    why = f"no node can log in to {TARGET}: 127.0.0.1:3260: login refused, status 0203h: not found"
    validator.report = replace(report(disk=False), refused=why)
    result = run(URL)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == f"Error: {why}"
    page = tmp_path / "report.html"
    result = run(URL, "--json", "--html", str(page))
    assert result.exit_code == 2
    assert json.loads(result.stdout)["refused"] == why
    assert why in page.read_text(encoding="utf-8")


async def test_a_target_that_does_not_exist(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        host, port = live.address()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pyiscsi_target", "validate"),
            f"iscsi://{host}:{port}/iqn.2026-11.lab.example:nowhere",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
    assert (process.returncode, output) == (2, b"")
    assert errors.startswith(b"Error: no node can log in to iqn.2026-11.lab.example:nowhere: ")
    assert len(errors.splitlines()) == 1


def test_json_on_stdout_and_nothing_else(validator: Validator) -> None:
    validator.report = report()
    result = run(URL, "--json")
    assert json.loads(result.stdout)["conclusion"] == Conclusion.NOT_READY.value
    assert result.exit_code == 1


def test_an_html_file_besides(validator: Validator, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = run(URL, "--html", str(page))
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert result.stdout.splitlines()[-1] == READY.headline


def test_an_html_file_that_cannot_be_written(validator: Validator, tmp_path: Path) -> None:
    result = run(URL, "--html", str(tmp_path / "no" / "folder.html"))
    assert result.exit_code == 2
    assert "No such file or directory" in result.stderr
    assert "READY for a cluster" in result.stdout  # what was found out is not lost with it


# As a process


@pytest.mark.parametrize("told_by", [signal.SIGTERM, signal.SIGINT])
async def test_a_real_run_ends_in_order_however_often_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_by: signal.Signals
) -> None:
    """It is told to stop in the midst of it, and again while it cleans up: reservations are taken
    away, the report is whole."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        unit = live.app._units["disk"]
        challenged, cleaning = asyncio.Event(), asyncio.Event()

        def look(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
            """A challenger registers while the owner is gone: it waits for a minute then."""
            attached = {nexus.key for nexus in unit.attentions.nexuses}
            if state.reservation is not None and state.reservation.holder not in attached:
                challenged.set()
            elif challenged.is_set():
                cleaning.set()
            return right

        Breaker(monkeypatch, live).reservations(
            look, ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY
        )
        host, port = live.address()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pyiscsi_target", "validate"),
            *(f"iscsi://{host}:{port}/{TARGET}", "--challenge-wait", "60", "--json"),
            stdout=asyncio.subprocess.PIPE,
        )
        for moment in (challenged, cleaning):
            await asyncio.wait_for(moment.wait(), PATIENCE_S)
            process.send_signal(told_by)
        output, _ = await process.communicate()
        assert process.returncode == 130
        assert not unit.reservations.registrations
    whole = json.loads(output)
    assert (whole["interrupted"], whole["conclusion"]) == (True, "unproven")
    assert whole["checks"][-1]["id"] == "clean-up"
    assert whole["checks"][-1]["verdict"] == "pass"
