"""What the measurements say of themselves: ratios, goals, tables."""

import pytest

from bench.report import Paired, paired_table, table
from bench.scenarios import SCENARIOS, Sample, Scenario


def sample(operations_per_s: float) -> Sample:
    return Sample(operations_per_s, cpu_s_per_gib=0.5, cpu_s=1.5, peak_bytes=3 << 20)


def scenario(name: str) -> Scenario:
    return next(row for row in SCENARIOS if row.name == name)


def paired(name: str, *rounds: tuple[float, float]) -> Paired:
    return Paired(scenario(name), [(sample(ours), sample(theirs)) for ours, theirs in rounds])


def test_the_ratio_is_the_median_of_the_rounds_not_of_the_servers() -> None:
    assert paired("read-4k-q32", (10, 1), (30, 10), (4, 2)).ratio == 3


@pytest.mark.parametrize(("ours", "holds"), [(249, False), (250, True), (251, True)])
def test_a_goal_is_reached_at_its_value(ours: float, holds: bool) -> None:
    assert paired("read-4k-q32", (ours, 100)).holds is holds


def test_a_load_for_show_has_no_goal() -> None:
    assert paired("read-1m-q8", (1, 100)).holds is None


def test_a_missed_goal_stands_out() -> None:
    row = paired_table(("this", "tgtd"), [paired("read-4k-q32", (50_000, 25_000))]).splitlines()[2]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:7] == ["50.0 k/s", "25.0 k/s", "2.00x", "2.00", "2.5x", "**no**"]
    assert cells[7:] == ["0.500", "0.500", "1.50", "1.50", "3", "3"]


def test_columns_line_up() -> None:
    assert table(["a", "long"], [["wide cell", "b"]]).splitlines() == [
        "| a         | long |",
        "| ---       | ---  |",
        "| wide cell | b    |",
    ]
