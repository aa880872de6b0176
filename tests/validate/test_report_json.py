"""The JSON report: its keys are a promise, and the documentation names each of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pyiscsi_target import __version__
from pyiscsi_target.validate import Report
from pyiscsi_target.validate.report_json import SCHEMA, as_json
from tests.support.reports import report

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "validate.md"


@pytest.fixture
def document() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(as_json(report()))
    return values


def test_the_whole(document: dict[str, Any]) -> None:
    assert document["schema"] == SCHEMA == 1
    assert document["program"] == {"name": "pyiscsi-target", "version": __version__}
    assert document["started_at"] == "2026-11-01T12:00:00+00:00"
    assert document["conclusion"] == "not_ready"
    assert document["headline"].startswith("NOT READY for a cluster: 1 check failed")
    assert document["counts"] == {"pass": 1, "fail": 1, "warn": 1, "skip": 1}
    assert document["target"]["disks"] == [0, 1]
    assert document["nodes"][0] == {
        "number": 1,
        "initiator_name": "iqn.2026-11.lab.example:node-1",
        "nexuses": [{"portal": "127.0.0.1:3260", "isid": "8056414c0101"}],
    }


def test_a_check(document: dict[str, Any]) -> None:
    passed, failed, warned, skipped = document["checks"]
    assert failed == {
        "id": "preempt-fences",
        "area": "Preemption",
        "title": "The preempted node cannot write any more",
        "proves": "two nodes never believe to own the disk: this is what keeps the data whole",
        "clause": "SPC-5 clause 5.14.11.4",
        "windows_test": "Validate Disk Failover",
        "importance": "required",
        "verdict": "fail",
        "prevented": False,
        "seen": "node 2: WRITE of zero blocks: GOOD <b>&amp;",
        "expected": "RESERVATION CONFLICT",
        "fix": "do not use it",
        "figures": {},
        "duration_s": 0.25,
    }
    assert passed["figures"] == {"p50_s": 0.001, "samples": 20.0}
    assert (warned["verdict"], skipped["verdict"], skipped["prevented"]) == ("warn", "skip", True)


def test_nothing_but_ascii_goes_out() -> None:
    """A terminal or a log gets no control character of a target."""
    assert as_json(report()).isascii()
    assert "\x1b" not in as_json(report())


def _keys(value: Any, path: str = "") -> set[str]:
    if isinstance(value, list):
        return set().union(*(_keys(item, path + "[]") for item in value))
    if not isinstance(value, dict) or path in (".counts", ".checks[].figures"):
        return set()
    found = set()
    for key, item in value.items():
        found |= {f"{path}.{key}", *_keys(item, f"{path}.{key}")}
    return found


def test_every_key_is_documented(document: dict[str, Any]) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\.[a-z_.\[\]]+)` \|", text, re.MULTILINE))
    assert documented == {key for key in _keys(document) if not key.endswith("[]")}


def test_a_report_without_a_disk() -> None:
    empty: Report = report(disk=False)
    target = json.loads(as_json(empty))["target"]
    assert (target["lun"], target["size_bytes"], target["serial"]) == (None, None, "")
