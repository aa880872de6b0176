"""The two names of the command: the module and the script."""

import runpy
import sys
from importlib.metadata import entry_points

import pytest

from pyiscsi_target.cli import main


def test_the_module_runs_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pyiscsi_target", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("pyiscsi_target", run_name="__main__")
    assert end.value.code == 0
    assert "Usage: pyiscsi-target" in capsys.readouterr().out


def test_the_script_is_the_same() -> None:
    (script,) = entry_points(group="console_scripts", name="pyiscsi-target")
    assert script.load() is main
