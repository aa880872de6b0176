"""A report as one HTML file that needs nothing else: no script, no font, no picture from elsewhere.

Everything that is filled into the page is escaped on its way in (`fill`); what is not, is `Markup`.
"""

from collections.abc import Iterable
from html import escape

from .. import __version__
from .html_style import STYLE
from .model import Area, CheckResult, Conclusion, NodeFacts, Report, Verdict
from .report_text import by_area, remarks
from .wording import printable


class Markup(str):
    """HTML that may stand in a page as it is."""

    __slots__ = ()


def fill(template: str, **values: object) -> Markup:
    """A piece of a page; values that are not Markup are escaped."""
    return Markup(
        template.format_map(
            {
                name: value if isinstance(value, Markup) else escape(printable(str(value)))
                for name, value in values.items()
            }
        )
    )


def join(pieces: Iterable[Markup]) -> Markup:
    """Pieces one after the other."""
    return Markup("".join(pieces))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header class="{conclusion}">
<p class="kind">Cluster readiness of an iSCSI target</p>
<h1>{verdict}</h1>
<p class="headline">{headline}</p>
<ul class="counts">{counts}</ul>
</header>
<main>
<section class="facts"><dl>{facts}</dl></section>
{worries}
{areas}
</main>
<footer>pyiscsi-target {version} validate, {started}, {duration} s</footer>
</body>
</html>
"""
_FACT = "<div><dt>{label}</dt><dd>{value}</dd></div>\n"
_COUNT = '<li class="{verdict}"><b>{count}</b> {label}</li>\n'
_AREA = """<section class="area">
<h2>{area}<span>{summary}</span></h2>
<table>
<colgroup><col class="verdicts"><col class="checks"><col></colgroup>
<thead><tr><th>Verdict</th><th>Check</th><th>Seen</th></tr></thead>
<tbody>
{rows}</tbody>
</table>
</section>
"""
_ROW = """<tr class="{verdict}" id="{id}">
<td><span class="verdict">{label}</span></td>
<td><p class="title">{title}</p><p class="proves">{proves}</p><p class="source">{source}</p></td>
<td><p class="seen">{seen}</p>{remarks}</td>
</tr>
"""
_REMARK = '<p class="remark"><b>{label}</b> {text}</p>'
_WORRIES = '<section class="worries"><h2>{title}</h2><ul>{items}</ul></section>'
_WORRY = '<li class="{verdict}"><a href="#{id}">{title}</a> {seen}</li>\n'

_VERDICTS = {
    Conclusion.READY: "Ready for a cluster",
    Conclusion.NOT_READY: "Not ready for a cluster",
    Conclusion.UNPROVEN: "Readiness not proven",
}
_LABELS = {
    Verdict.PASS: "passed",
    Verdict.FAIL: "failed",
    Verdict.WARN: "warned",
    Verdict.SKIP: "skipped",
}


def as_html(report: Report) -> str:
    """The whole page."""
    return fill(
        _PAGE,
        title=f"{_VERDICTS[report.conclusion]}: {report.target.name}",
        style=Markup(STYLE),
        conclusion=report.conclusion.value,
        verdict=_VERDICTS[report.conclusion],
        headline=report.headline.partition(": ")[2],
        counts=join(
            fill(_COUNT, verdict=verdict.value, count=report.counts[verdict], label=label)
            for verdict, label in _LABELS.items()
        ),
        facts=join(fill(_FACT, label=label, value=value) for label, value in _facts(report)),
        worries=_worries(report),
        areas=join(_area(area, results) for area, results in by_area(report)),
        version=__version__,
        started=report.started_at.strftime("%Y-%m-%d %H:%M UTC"),
        duration=f"{report.duration_s:.1f}",
    )


def _facts(report: Report) -> Iterable[tuple[str, object]]:
    target = report.target
    yield "Target", target.name
    yield "Portals", ", ".join(target.portals or (target.portal,))
    if target.lun is not None:
        yield "Disk", f"LUN {target.lun}: {target.vendor} {target.product} {target.revision}"
        yield "Serial number", target.serial
        yield "Size", f"{target.size_bytes or 0:,} bytes in blocks of {target.block_size}"
    yield "Writes", "allowed, on two scratch blocks" if report.writes_allowed else "not allowed"
    yield "Nodes", join(fill("{node}<br>", node=_node(node)) for node in report.nodes)


def _node(node: NodeFacts) -> str:
    sessions = "session" if len(node.nexuses) == 1 else "sessions"
    return f"{node.initiator_name} ({len(node.nexuses)} {sessions})"


def _worries(report: Report) -> Markup:
    """What a reader came for: the failures first, each with a link to its row."""
    found = [
        r
        for verdict in (Verdict.FAIL, Verdict.WARN)
        for r in report.results
        if r.verdict is verdict
    ]
    if not found:
        return Markup("")
    items = join(
        fill(
            _WORRY,
            verdict=result.verdict.value,
            id=result.check.id,
            title=result.check.title,
            seen=result.seen,
        )
        for result in found
    )
    return fill(_WORRIES, title="What to look at", items=items)


def _area(area: Area, results: list[CheckResult]) -> Markup:
    passed = sum(result.verdict is Verdict.PASS for result in results)
    return fill(
        _AREA,
        area=area.value,
        summary=f"{passed} of {len(results)} passed",
        rows=join(map(_row, results)),
    )


def _row(result: CheckResult) -> Markup:
    check = result.check
    windows = f"Windows: {check.windows}" if check.windows else ""
    source = ", ".join(filter(None, (check.importance.value, check.clause, windows)))
    return fill(
        _ROW,
        verdict=result.verdict.value,
        label=result.verdict.name,
        id=check.id,
        title=check.title,
        proves=check.proves,
        source=source,
        seen=result.seen,
        remarks=join(
            fill(_REMARK, label=label, text=text)
            for label, text in remarks(result)
            if label != "see"
        ),
    )
