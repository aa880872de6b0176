"""`python -m bench`: this tree's server beside tgtd, or beside an older version of itself."""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench.formats import FORMAT_FIGURES
from bench.report import Paired, document, figure_table, paired_table
from bench.scenarios import FIGURES, SCENARIOS, Figure, Sample, Scenario, Terms, measure
from bench.subjects import Subject, checked_out, tgtd_server, this_server
from tests.support.server import ROOT

ALL_FIGURES = FIGURES | FORMAT_FIGURES
RESULTS = ROOT / "bench" / "RESULTS.md"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    names = [scenario.name for scenario in SCENARIOS] + list(ALL_FIGURES)
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--against", metavar="GIT_REF", help="compare with this version, not tgtd")
    parser.add_argument("--quick", action="store_true", help="one short round; writes no file")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run")
    parser.add_argument("--server-cpus", default="", metavar="LIST", help="pin the servers")
    parser.add_argument("--client-cpus", default="", metavar="LIST", help="pin the clients")
    parser.add_argument("--directory", type=Path, help="where the images go (4 GiB, a real disk)")
    parser.add_argument("--output", type=Path, help=f"default for a whole run: {RESULTS}")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    options.wanted = options.only or names
    if options.output is None and not (options.quick or options.only or options.against):
        options.output = RESULTS
    return options


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def pair(scenario: Scenario, subjects: tuple[Subject, Subject], terms: Terms) -> Paired:
    """The load against one and the other, in turn."""
    load = scenario.load(terms.duration_s, terms.client_pin)
    rounds: list[tuple[Sample, Sample]] = []
    for _ in range(terms.rounds):
        ours, theirs = (measure(subject, scenario.client, load) for subject in subjects)
        rounds.append((ours, theirs))
    result = Paired(scenario, rounds)
    say(f"{scenario.name}: {result.ratio:.2f}x")
    return result


def figures_of(
    subjects: Sequence[Subject], wanted: Sequence[str], terms: Terms
) -> Iterator[Figure]:
    for name, measurement in ALL_FIGURES.items():
        if name not in wanted:
            continue
        for subject in subjects:
            for figure in measurement(subject, terms):
                say(f"{name} of {subject.name}: {figure.value}")
                title = figure.title if len(subjects) == 1 else f"{subject.name}: {figure.title}"
                yield replace(figure, title=title)


def start(options: argparse.Namespace, stack: ExitStack, home: Path) -> tuple[Subject, Subject]:
    pin = options.server_cpus
    ours = stack.enter_context(this_server("this", home / "this", source=ROOT, pin=pin))
    if options.against is None:
        return ours, stack.enter_context(tgtd_server(home / "other", pin=pin))
    source = stack.enter_context(checked_out(options.against, home / "source"))
    other = this_server(options.against, home / "other", source=source, pin=pin)
    return ours, stack.enter_context(other)


def conditions(options: argparse.Namespace) -> str:
    servers, clients = options.server_cpus or "any", options.client_cpus or "any"
    return (
        f"{options.rounds} rounds of {options.seconds:g} s a load, the two servers in turn; "
        f"ratios are medians of the rounds. Servers on CPU {servers}, "
        f"clients on CPU {clients}. Images of 1 GiB, filled, in the page cache."
    )


def main() -> None:
    options = arguments()
    terms = Terms(options.rounds, options.seconds, options.client_cpus)
    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory)
        home = Path(stack.enter_context(temporary))
        subjects = start(options, stack, home)
        names = (subjects[0].name, subjects[1].name)
        wanted = [scenario for scenario in SCENARIOS if scenario.name in options.wanted]
        if options.against:  # the goals are ratios to tgtd
            wanted = [replace(scenario, goal=None) for scenario in wanted]
        paired = [pair(scenario, subjects, terms) for scenario in wanted]
        owners = subjects if options.against else subjects[:1]
        figures = list(figures_of(owners, options.wanted, terms))
        if options.output is not None:
            text = document(conditions(options), home, names, paired, figures)
            options.output.write_text(text, encoding="utf-8")
        if paired:
            print(paired_table(names, paired))
        if figures:
            print("\n" * bool(paired) + figure_table(figures))
        failed = [p.holds for p in paired] + [f.holds for f in figures]
    if False in failed:
        say("not every goal was reached")


if __name__ == "__main__":
    main()
