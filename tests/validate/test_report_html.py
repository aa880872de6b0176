"""The HTML report: one file, well formed, and nothing of a target gets into it as markup."""

import re
from html.parser import HTMLParser

import pytest

from pyiscsi_target.validate.report_html import Markup, as_html, fill
from tests.support.reports import report

VOID = {"meta", "br", "col"}


class Page(HTMLParser):
    """Checks that every element is closed where it must be, and collects what a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values["href"] or ""] if "href" in values else []
        assert not {"src", "onload", "onclick"} & values.keys()
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)


@pytest.fixture
def page() -> Page:
    return Page(as_html(report()))


def test_it_is_well_formed(page: Page) -> None:
    assert page.open == []
    assert page.tags.count("tr") == 4 + 4, "a row for each check, and the heads of four tables"


def test_it_is_self_contained(page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object"} & {*page.tags}
    assert all(link.startswith("#") for link in page.links)
    text = as_html(report())
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_what_a_reader_sees(page: Page) -> None:
    words = " ".join(" ".join(page.words).split())
    for part in (
        "Not ready for a cluster",
        "1 check failed (1 passed, 1 warning, 1 skipped)",
        "LUN 0: LAB <script>alert(1)</script>\ufffd[2J{style}[bold] 0001",
        "1,073,741,824 bytes in blocks of 512",
        "iqn.2026-11.lab.example:node-1 (1 session)",
        "node 2: WRITE of zero blocks: GOOD <b>&amp;",
        "expected RESERVATION CONFLICT",
        "fix do not use it",
        "required, SPC-5 clause 5.14.11.4, Windows: Validate Disk Failover",
    ):
        assert part in words, part


def test_failures_come_first_and_lead_to_their_rows(page: Page) -> None:
    assert page.links == ["#preempt-fences", "#dpofua"]
    assert {link[1:] for link in page.links} <= {*page.ids}
    assert len({*page.ids}) == len(page.ids)


def test_light_dark_and_paper() -> None:
    text = as_html(report())
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert 'name="color-scheme" content="light dark"' in text
    named = set(re.findall(r"var\((--[a-z-]+)\)", text))
    for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL)[:2]:
        assert named == set(re.findall(r"(--[a-z-]+):", block)), "every colour in both schemes"


def test_values_are_escaped_and_markup_is_not() -> None:
    assert fill("<p>{a}{b}</p>", a="<&\x07>", b=Markup("<br>")) == "<p>&lt;&amp;\ufffd&gt;<br></p>"
    assert fill("{a}", a="{b}") == "{b}", "a value is no template"


def test_a_report_without_a_disk() -> None:
    page = Page(as_html(report(disk=False)))
    assert "Serial number" not in " ".join(page.words)
