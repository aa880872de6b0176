"""docs/validate.md lists the checks as they are."""

import re
from pathlib import Path

from pyiscsi_target.validate import CHECKS, Check
from pyiscsi_target.validate.rig import NODES_MAXIMUM, NODES_MINIMUM

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "validate.md").read_text(encoding="utf-8")


def row(check: Check) -> str:
    windows = f"Windows: {check.windows}" if check.windows else ""
    where = "; ".join(filter(None, (check.clause, windows)))
    what = f"`{check.id}`: {check.title}"
    return f"| {what} | {check.proves} | {where} | {check.importance.value} |"


def test_every_check_is_there_as_it_is() -> None:
    documented = re.findall(r"^\| `[a-z0-9-]+`: .*$", TEXT, re.MULTILINE)
    assert documented == [row(check) for check in CHECKS]


def test_the_areas_are_there_in_their_order() -> None:
    documented = re.findall(r"^### (.*)$", TEXT, re.MULTILINE)
    assert documented == list(dict.fromkeys(check.area.value for check in CHECKS))


def test_the_number_of_nodes() -> None:
    assert (NODES_MINIMUM, NODES_MAXIMUM) == (2, 8)
    assert "two to eight nodes" in TEXT
