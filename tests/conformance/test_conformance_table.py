"""CONFORMANCE.md names code and tests that exist, and every conformance test is named in it."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "CONFORMANCE.md").read_text()
ROWS = [line.split(" | ") for line in TABLE.splitlines() if re.match(r"\| [0-9]", line)]
CODE = sorted({name for row in ROWS for name in re.findall(r"`([a-z_]+\.[\w.]+)`", row[2])})
TESTS = sorted({name for row in ROWS for name in re.findall(r"`([\w/]+\.py(?:::\w+)?)`", row[3])})
THIS = Path(__file__).name


def functions(path: Path) -> set[str]:
    return set(re.findall(r"def (test_\w+)", path.read_text()))


def test_every_row_has_four_columns() -> None:
    assert len(ROWS) > 100
    assert [row for row in ROWS if len(row) != 4] == []


def test_every_row_names_code_or_says_why_not() -> None:
    empty = [row[:2] for row in ROWS if "`" not in row[2] and "not applicable: " not in row[2]]
    assert empty == []


def test_every_row_that_applies_names_a_test() -> None:
    untested = [row[:2] for row in ROWS if "not applicable: " not in row[2] and "`" not in row[3]]
    assert untested == []


@pytest.mark.parametrize("name", CODE)
def test_code_exists(name: str) -> None:
    package, module, *attributes = name.split(".")
    found: object = importlib.import_module(f"pyiscsi_target.{package}.{module}")
    for attribute in attributes:
        assert hasattr(found, attribute), f"{name}: no {attribute}"
        found = getattr(found, attribute)


@pytest.mark.parametrize("name", TESTS)
def test_test_exists(name: str) -> None:
    path, _, function = name.partition("::")
    assert (ROOT / "tests" / path).is_file()
    assert not function or function in functions(ROOT / "tests" / path)


def test_every_conformance_test_is_named() -> None:
    written = {
        function
        for path in Path(__file__).parent.glob("test_*.py")
        if path.name != THIS
        for function in functions(path)
    }
    named = {name.rpartition("::")[2] for name in TESTS}
    assert sorted(written - named) == []
