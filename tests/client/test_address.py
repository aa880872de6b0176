"""Portals, TargetAddress values and URLs: what is understood, and what the errors say."""

import pytest

from pyiscsi_target.client import Portal, TargetAddress, TargetUrl, parse_url

IQN = "iqn.2026-11.lab.example:disk"


@pytest.mark.parametrize(
    ("text", "portal", "canonical"),
    [
        ("192.0.2.1", Portal("192.0.2.1", 3260), "192.0.2.1:3260"),
        ("192.0.2.1:860", Portal("192.0.2.1", 860), "192.0.2.1:860"),
        ("host.example:1", Portal("host.example", 1), "host.example:1"),
        ("[::1]", Portal("::1", 3260), "[::1]:3260"),
        ("[fe80::1%eth0]:65535", Portal("fe80::1%eth0", 65535), "[fe80::1%eth0]:65535"),
    ],
)
def test_portals(text: str, portal: Portal, canonical: str) -> None:
    assert Portal.parse(text) == portal
    assert str(portal) == canonical
    assert Portal.parse(canonical) == portal


@pytest.mark.parametrize(
    "text", ["", ":3260", "::1", "::1:3260", "host:", "host:x", "host:0", "host:65536", "[::1]3260"]
)
def test_what_is_no_portal(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not HOST|no port between"):
        Portal.parse(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1:3260,1", TargetAddress(Portal("192.0.2.1"), 1)),
        ("[::1]:860,65535", TargetAddress(Portal("::1", 860), 65535)),
        ("host.example", TargetAddress(Portal("host.example"))),
    ],
)
def test_target_addresses(text: str, address: TargetAddress) -> None:
    assert TargetAddress.parse(text) == address


@pytest.mark.parametrize("text", ["192.0.2.1,", "192.0.2.1,x", "192.0.2.1,-1", ",1"])
def test_what_is_no_target_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"tag|HOST"):
        TargetAddress.parse(text)


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        (f"iscsi://192.0.2.1/{IQN}", TargetUrl(Portal("192.0.2.1"), IQN)),
        (f"iscsi://192.0.2.1/{IQN}/", TargetUrl(Portal("192.0.2.1"), IQN)),
        (f"ISCSI://host:3261/{IQN}/7", TargetUrl(Portal("host", 3261), IQN, 7)),
        (f"iscsi://[::1]:3261/{IQN}/0", TargetUrl(Portal("::1", 3261), IQN, 0)),
        ("iscsi://h/eui.0011223344556677", TargetUrl(Portal("h"), "eui.0011223344556677")),
        ("iscsi://h/iqn.2026-11.x%3Ay", TargetUrl(Portal("h"), "iqn.2026-11.x:y")),
    ],
)
def test_urls(url: str, parsed: TargetUrl) -> None:
    assert parse_url(url) == parsed
    assert parse_url(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "is not iscsi://HOST"),
        (IQN, "is not iscsi://HOST"),
        (f"http://host/{IQN}", "is not iscsi://HOST"),
        (f"iscsi:///{IQN}", "the host is missing"),
        ("iscsi://host", "no target name"),
        ("iscsi://host/disk", "'disk' is no target name"),
        (f"iscsi://host:0/{IQN}", "no port between 1 and 65535"),
        (f"iscsi://host/{IQN}/x", "'x' is no LUN"),
        (f"iscsi://host/{IQN}/16384", "'16384' is no LUN"),
        (f"iscsi://host/{IQN}/-1", "'-1' is no LUN"),
        (f"iscsi://host/{IQN}/0/1", "'0/1' is no LUN"),
        (f"iscsi://host/{IQN}/0?x=1", "nothing may follow"),
    ],
)
def test_what_is_wrong_with_a_url(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_url(url)


@pytest.mark.parametrize("scheme", ["iscsi", "iscsis"])
def test_a_secret_in_a_url_is_refused_and_not_repeated(scheme: str) -> None:
    with pytest.raises(ValueError, match="iscsi://HOST") as refused:
        parse_url(f"{scheme}://user%secret@host/{IQN}")
    assert "secret@" not in str(refused.value)
    assert "user" not in str(refused.value).replace("no user", "")
