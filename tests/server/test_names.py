"""iSCSI names against RFC 7143 section 4.2.7 and RFC 3722."""

import pytest

from pyiscsi_target.server import names

GOOD = [
    "iqn.2026-11.lab.example:cluster",
    "iqn.1991-05.com.microsoft:node1.lab",
    "iqn.1993-08.org.debian:01:abcdef",
    "iqn.2001-04.com.example",
    "iqn.2001-04.com.example:storage:disk2.sys1.xyz",
    "iqn.2001-04.com.example:b\u00fcro",
    "eui.02004567a425678d",
    "naa.52004567ba64678d",
    "naa.62004567ba64678d0123456789abcdef",
]


@pytest.mark.parametrize("name", GOOD)
def test_good_names_are_their_own_normal_form(name: str) -> None:
    assert names.check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "cluster",
        "ign.2026-11.lab.example:x",
        "iqn.2026-13.lab.example:x",
        "iqn.26-11.lab.example:x",
        "iqn.2026-11",
        "iqn.2026-11.lab..example",
        "iqn.2026-11.lab.example:",
        "iqn.2026-11.lab.example:a b",
        "iqn.2026-11.lab.example:a_b",
        "iqn.2026-11.lab.example:a/b",
        "iqn.2026-11.lab.example:a\u3002b",
        "iqn.2026-11.lab.example:a\u200eb",
        "eui.02004567a425678",
        "eui.02004567a425678g",
        "naa.52004567ba64678d0",
        "iqn.2026-11.lab.example:" + "x" * 200,
    ],
)
def test_bad_names_are_refused_with_advice(name: str) -> None:
    with pytest.raises(ValueError, match="; "):
        names.check_name(name)


def test_the_limit_counts_bytes() -> None:
    prefix = "iqn.2026-11.lab.example:"
    assert names.check_name(prefix + "x" * (223 - len(prefix)))
    with pytest.raises(ValueError, match="223 bytes"):
        names.check_name(prefix + "\u00fc" * ((223 - len(prefix)) // 2 + 1))


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("IQN.2026-11.Lab.Example:Cluster", "iqn.2026-11.lab.example:cluster"),
        ("EUI.02004567A425678D", "eui.02004567a425678d"),
        ("iqn.2026-11.lab.example:B\u00dcRO", "iqn.2026-11.lab.example:b\u00fcro"),
        ("iqn.2026-11.lab.example:soft\u00adhyphen", "iqn.2026-11.lab.example:softhyphen"),
        ("iqn.2026-11.lab.example:\uff41", "iqn.2026-11.lab.example:a"),
    ],
)
def test_case_and_width_do_not_distinguish(written: str, normal: str) -> None:
    assert names.normalise(written) == normal


def test_prohibited_characters_are_listed_once() -> None:
    assert names.prohibited_characters("iqn.2026-11.lab.example:a_b_c/d") == "_/"
