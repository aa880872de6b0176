"""A report as JSON, for programs. The keys are a promise: see docs/validate.md."""

import json
from typing import Any

from .. import __version__
from .model import CheckResult, NodeFacts, Report, TargetFacts

SCHEMA = 1  # raised when a key changes its meaning or goes; new keys may come at any time


def as_json(report: Report) -> str:
    """The whole report as one JSON document."""
    return json.dumps(as_values(report), indent=2, ensure_ascii=True) + "\n"


def as_values(report: Report) -> dict[str, Any]:
    """The report as plain values."""
    return {
        "schema": SCHEMA,
        "program": {"name": "pyiscsi-target", "version": __version__},
        "started_at": report.started_at.isoformat(timespec="seconds"),
        "duration_s": round(report.duration_s, 3),
        "conclusion": report.conclusion.value,
        "headline": report.headline,
        "interrupted": report.interrupted,
        "refused": report.refused,
        "writes_allowed": report.writes_allowed,
        "counts": {verdict.value: count for verdict, count in report.counts.items()},
        "target": _target(report.target),
        "nodes": [_node(node) for node in report.nodes],
        "checks": [_check(result) for result in report.results],
    }


def _target(target: TargetFacts) -> dict[str, Any]:
    return {
        "name": target.name,
        "portal": target.portal,
        "portals": list(target.portals),
        "lun": target.lun,
        "disks": list(target.disks),
        "vendor": target.vendor,
        "product": target.product,
        "revision": target.revision,
        "serial": target.serial,
        "size_bytes": target.size_bytes,
        "block_size": target.block_size,
    }


def _node(node: NodeFacts) -> dict[str, Any]:
    return {
        "number": node.number,
        "initiator_name": node.initiator_name,
        "nexuses": [{"portal": portal, "isid": isid} for portal, isid in node.nexuses],
    }


def _check(result: CheckResult) -> dict[str, Any]:
    check = result.check
    return {
        "id": check.id,
        "area": check.area.value,
        "title": check.title,
        "proves": check.proves,
        "clause": check.clause,
        "windows_test": check.windows,
        "importance": check.importance.value,
        "verdict": result.verdict.value,
        "prevented": result.prevented,
        "seen": result.seen,
        "expected": result.expected,
        "fix": result.fix,
        "figures": dict(result.figures),
        "duration_s": round(result.duration_s, 6),
    }
