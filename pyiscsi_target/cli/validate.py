"""`pyiscsi-target validate`: is this target, whoever made it, fit for a cluster?"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.status import Status

from ..client import ConnectionLost, Credentials, TargetUrl, parse_url, read_chap_file
from ..validate import (
    CHECKS,
    NODES_DEFAULT,
    NODES_MAXIMUM,
    NODES_MINIMUM,
    Check,
    CheckResult,
    Conclusion,
    Options,
    Report,
    node_names,
    validate,
)
from ..validate.report_html import as_html
from ..validate.report_json import as_json
from ..validate.report_text import print_report

EXIT_READY, EXIT_NOT_READY, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def _url(ctx: click.Context, param: click.Parameter, value: str) -> TargetUrl:
    try:
        return parse_url(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command("validate", short_help="Prove that a target is fit for a cluster.")
@click.argument("url", callback=_url)
@click.option(
    "--lun", type=click.IntRange(0, 16383), help="The disk; by default the first that there is."
)
@click.option(
    "--nodes",
    type=click.IntRange(NODES_MINIMUM, NODES_MAXIMUM),
    help=f"How many nodes to simulate.  [default: {NODES_DEFAULT}]",
)
@click.option(
    "--initiator-name",
    "names",
    multiple=True,
    metavar="NAME",
    help="What the nodes call themselves, for targets that admit by name: once for each node, or"
    " once with {n} for the node's number, or once for all (told apart by ISID).",
)
@click.option(
    "--chap-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="CHAP name and secret, in a TOML file that only its owner can read.",
)
@click.option(
    "--idle",
    is_flag=True,
    help="No host uses the disk, though it holds data: reserving it does no harm.",
)
@click.option(
    "--allow-writes",
    is_flag=True,
    help="Write to two scratch blocks, whose content is put back afterwards.",
)
@click.option(
    "--challenge-wait",
    "challenge_wait_s",
    type=click.FloatRange(0, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a challenger gives the owner to defend the disk; Windows waits for 7.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the target may take for one command.",
)
@click.option("--json", "json_output", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--html",
    "html_file",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    metavar="FILE",
    help="Write the report to an HTML file, too.",
)
def validate_command(
    url: TargetUrl,
    lun: int | None,
    nodes: int | None,
    names: tuple[str, ...],
    chap_file: Path | None,
    idle: bool,
    allow_writes: bool,
    challenge_wait_s: float,
    timeout_s: float,
    json_output: bool,
    html_file: Path | None,
) -> None:
    """Run the checks of a cluster validation against the target at URL, whoever made it.

    URL is iscsi://HOST[:PORT]/TARGET[/LUN]. Several simulated nodes log in, look at the disk,
    register, reserve and fight for it. No data is changed without --allow-writes. A disk with
    registrations of others is left alone, and one that holds data is reserved only with --idle;
    what the nodes registered is taken away at the end, also at Ctrl-C.

    Exit status 0 where the target is ready for a cluster, 1 where it is not or that could not be
    proven, 2 where it cannot be reached, refuses every node's login or the command is wrong, 130
    after Ctrl-C.
    """
    options = Options(
        url=_with_lun(url, lun),
        initiator_names=_names(nodes, names),
        credentials=_credentials(chap_file),
        idle=idle,
        allow_writes=allow_writes,
        challenge_wait_s=challenge_wait_s,
        timeout_s=timeout_s,
    )
    try:
        report = asyncio.run(_validate(options))
    except ConnectionLost as error:
        click.echo(f"Error: cannot reach the target: {error}", err=True)
        sys.exit(EXIT_USAGE)
    if report.refused:
        click.echo(f"Error: {report.refused}", err=True)
    if json_output:
        click.echo(as_json(report), nl=False)
    elif not report.refused:  # that line says all that is known
        print_report(report, Console())
    if html_file is not None:
        _write(html_file, as_html(report))
    sys.exit(_status(report))


def _with_lun(url: TargetUrl, lun: int | None) -> TargetUrl:
    if lun is None:
        return url
    if url.lun not in (None, lun):
        raise click.UsageError(f"the URL names LUN {url.lun}, --lun {lun}")
    return TargetUrl(url.portal, url.target, lun)


def _names(nodes: int | None, names: tuple[str, ...]) -> tuple[str, ...]:
    count = nodes or (len(names) if len(names) > 1 else NODES_DEFAULT)
    if count > NODES_MAXIMUM:
        raise click.UsageError(f"at most {NODES_MAXIMUM} nodes, and a name for each")
    try:
        return node_names(count, names)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _credentials(path: Path | None) -> Credentials | None:
    try:
        return None if path is None else read_chap_file(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        click.echo(f"Error: {path}: {error.strerror or error}", err=True)
        sys.exit(EXIT_USAGE)


def _status(report: Report) -> int:
    if report.interrupted:
        return EXIT_INTERRUPTED
    if report.refused:
        return EXIT_USAGE
    return EXIT_READY if report.conclusion is Conclusion.READY else EXIT_NOT_READY


async def _validate(options: Options) -> Report:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not end the clean-up
        with contextlib.suppress(NotImplementedError):  # Windows: one Ctrl-C ends it in order
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with _progress() as on_progress:
        return await validate(options, on_progress=on_progress)


class _Progress:
    """Which check is running, on a terminal's last line."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._done = 0

    def __call__(self, check: Check, result: CheckResult | None) -> None:
        if result is None:
            self._done += 1
            self._status.update(f"{self._done}/{len(CHECKS)} {check.title}")


@contextlib.contextmanager
def _progress() -> Iterator[_Progress]:
    """Progress on stderr; nothing is shown where that is no terminal."""
    with Console(stderr=True).status("") as status:
        yield _Progress(status)
