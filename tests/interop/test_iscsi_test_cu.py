"""libiscsi's conformance suites (iscsi-test-cu): none fails, and only the listed tests skip.

The program counts a skipped test as passed and only prints [SKIPPED]; the list of those that may,
with the reasons, is iscsi_test_cu_skips.toml. A listed test that no longer skips fails here too.
"""

import re
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.images import MIB
from tests.support.process import run_tool
from tests.support.server import Server, Setup, serving

pytestmark = pytest.mark.timeout(600)

LISTED = tomllib.loads(Path(__file__).with_name("iscsi_test_cu_skips.toml").read_text("utf-8"))
FAMILY = "ALL"


# What follows the verdict is said while the next suite is set up, and belongs to no test.
VERDICT = re.compile(r"(?m)(?<![\]\w])(passed|FAILED)(?=$| {4}\[)")


@dataclass
class Outcome:
    """What one test of a suite printed."""

    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def verdict(self) -> str:
        """`passed`, `FAILED` or nothing: the suite died in this test."""
        found = VERDICT.search(self.text)
        return found[1] if found else ""

    @property
    def skips(self) -> list[str]:
        return re.findall(r"\[SKIPPED\] *(.*)", VERDICT.split(self.text)[0])


@dataclass
class Report:
    """A run of the suites: outcomes by `Suite.Test`."""

    kind: str
    outcomes: dict[str, Outcome]
    output: str


def parse(output: str) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    suite, current = "", Outcome()
    for line in output.split("Run Summary:")[0].splitlines():
        if match := re.match(r"Suite: (\S+)", line):
            suite = match[1]
        elif match := re.match(r"  Test: (\S+) \.\.\.(.*)", line):
            current = outcomes.setdefault(f"{suite}.{match[1]}", Outcome())
            current.lines.append(match[2])
        else:
            current.lines.append(line)
    return outcomes


def known_tests(family: str) -> list[str]:
    listed = run_tool(["iscsi-test-cu", "--list"]).stdout.split()
    return [name.split(".", 1)[1] for name in listed if re.match(rf"{family}\.\w+\.", name)]


def run_suites(kind: str, urls: list[str], tests: str = FAMILY) -> Report:
    command = ["iscsi-test-cu", "--dataloss", "--allow-sanitize", "--fail", "--verbose"]
    done = run_tool([*command, "--test", tests, *urls], timeout_s=500, check=False)
    return Report(kind, parse(done.stdout), done.stdout + done.stderr)


# Logical blocks per physical block matter to some suites: one skips them, one misreads them.
DISKS: dict[str, dict[str, Any]] = {
    "thin-512": {"physical_block_size": 512},
    "thin-512-in-4096": {"physical_block_size": 4096},
    "thin-4096-header-digest": {"block_size": 4096},
    "full-512-write-through": {"thin": False, "write_cache": False, "physical_block_size": 512},
    "removable": {"physical_block_size": 512, "removable": True},
}
TARGETS = {"thin-4096-header-digest": {"header_digest": "required"}}
URL_OPTIONS = {"thin-4096-header-digest": "?header_digest=crc32c"}


def run_all_suites(kind: str, directory: Path) -> Report:
    """Two portals, since the multipath suite wants two ways to the same disk."""
    disk = {"path": directory / "disk.img", "size": 64 * MIB, **DISKS[kind]}
    portals = ("127.0.0.1:0", "127.0.0.2:0")
    setup = Setup({"disk": disk}, target=TARGETS.get(kind, {}), portals=portals)
    with serving(setup, directory) as server:
        options = URL_OPTIONS.get(kind, "")
        return run_suites(kind, [server.url(portal=portal) + options for portal in (0, 1)])


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """The suites wait more than they work, so two kinds of disk run at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(
            zip(
                DISKS,
                pool.map(run_all_suites, DISKS, map(tmp_path_factory.mktemp, DISKS)),
                strict=True,
            )
        )


@pytest.fixture(params=DISKS)
def report(request: pytest.FixtureRequest, reports: dict[str, Report]) -> Report:
    return reports[request.param]


def test_every_suite_runs(report: Report) -> None:
    assert sorted(report.outcomes) == sorted(known_tests(FAMILY))


def listed(section: str, kind: str) -> dict[str, list[str]]:
    """Each test that a section of the list names for this kind of disk, and what it may say."""
    found: dict[str, list[str]] = {}
    for entry in LISTED[section]:
        if kind not in entry.get("only_on", [kind]):
            continue
        for test in known_tests(FAMILY):
            if test in entry["tests"] or test.split(".")[0] in entry["tests"]:
                found.setdefault(test, []).extend(entry["says"])
    return found


def assert_as_listed(said: dict[str, list[str]], allowed: dict[str, list[str]]) -> None:
    unlisted = {
        name: lines
        for name, lines in said.items()
        if not all(any(part in line for part in allowed.get(name, ())) for line in lines)
    }
    assert not unlisted
    assert sorted(said) == sorted(allowed), "a listed test did not do what the list says"


def test_nothing_fails(report: Report) -> None:
    failed = {name: [o.text] for name, o in report.outcomes.items() if o.verdict != "passed"}
    assert "Run Summary:" in report.output, report.output[-2000:]
    assert_as_listed(failed, listed("wrong", report.kind))


def test_only_the_listed_tests_skip(report: Report) -> None:
    skipped = {name: o.skips for name, o in report.outcomes.items() if o.skips}
    assert_as_listed(skipped, listed("skip", report.kind))


def test_the_list_names_real_tests_and_says_why() -> None:
    names = {*known_tests(FAMILY), *(test.split(".")[0] for test in known_tests(FAMILY))}
    for entry in [*LISTED["skip"], *LISTED["wrong"]]:
        assert entry["reason"]
        assert set(entry["tests"]) <= names
        assert set(entry.get("only_on", ())) <= set(DISKS)


def test_what_is_wrong_on_a_disk_passes_elsewhere(reports: dict[str, Report]) -> None:
    """What a disk cannot pass by the test's own fault, another kind does, or no kind could."""
    for entry in LISTED["wrong"]:
        if entry.get("passes_nowhere"):
            continue
        for test in entry["tests"]:
            outcomes = [reports[kind].outcomes[test] for kind in DISKS]
            assert any(o.verdict == "passed" and not o.skips for o in outcomes), test


@pytest.fixture
def read_only_server(tmp_path: Path) -> Iterator[Server]:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(16 * MIB))
    setup = Setup({"disk": {"path": image, "read_only": True}})
    with serving(setup, tmp_path) as server:
        yield server


def test_read_only_suite_on_a_read_only_disk(read_only_server: Server) -> None:
    report = run_suites("read-only", [read_only_server.url()], "ALL.ReadOnly")
    assert report.outcomes.keys() == {"ReadOnly.ReadOnlySBC"}
    outcome = report.outcomes["ReadOnly.ReadOnlySBC"]
    assert outcome.verdict == "passed", outcome.text
    assert not outcome.skips
