"""Who is admitted where: the decisions, without a wire."""

from pathlib import Path

import pytest

from pyiscsi_target.iscsi.chap import Credentials
from pyiscsi_target.iscsi.keys import Limits as EngineLimits
from pyiscsi_target.server.config import load_config
from pyiscsi_target.server.targets import ConfiguredTargets, credentials, engine_limits

CONFIG = """
[disks.a]
path = "ram:"
size = 512
[disks.b]
path = "ram:"
size = 512

[targets."iqn.2026-11.lab.example:closed"]
luns = { 0 = "a" }

[targets."iqn.2026-11.lab.example:named"]
luns = { 0 = "a", 1 = "b" }
initiators = [
    { name = "iqn.1991-05.com.microsoft:node3.lab", luns = { 7 = "b" } },
    "iqn.1991-05.com.microsoft:*.lab",
    { name = "iqn.1994-05.com.redhat:*", address = "192.0.2.0/24" },
    "2001:db8::/32",
]

[targets."iqn.2026-11.lab.example:open"]
luns = { 0 = "b" }
initiators = ["*"]
"""
CLOSED, NAMED, OPEN = (f"iqn.2026-11.lab.example:{name}" for name in ("closed", "named", "open"))
BOTH = {0: "a", 1: "b"}


@pytest.fixture
def targets(tmp_path: Path) -> ConfiguredTargets:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return ConfiguredTargets(load_config(path))


@pytest.mark.parametrize(
    ("initiator", "address", "luns"),
    [
        ("iqn.1991-05.com.microsoft:node1.lab", "198.51.100.1", BOTH),
        ("IQN.1991-05.com.Microsoft:NODE1.lab", "198.51.100.1", BOTH),
        ("iqn.1991-05.com.microsoft:node3.lab", "198.51.100.1", {7: "b"}),
        ("iqn.1991-05.com.microsoft:node1.other", "198.51.100.1", None),
        ("iqn.1994-05.com.redhat:x", "192.0.2.9", BOTH),
        ("iqn.1994-05.com.redhat:x", "::ffff:192.0.2.9", BOTH),
        ("iqn.1994-05.com.redhat:x", "192.0.3.9", None),
        ("iqn.1993-08.org.debian:x", "192.0.2.9", None),
        ("iqn.1993-08.org.debian:x", "2001:db8::9", BOTH),
        ("iqn.1993-08.org.debian:x", "2001:db9::9", None),
        ("iqn.1993-08.org.debian:x", "", None),
        ("", "192.0.2.9", None),
        ("*", "192.0.2.9", None),
    ],
)
def test_the_first_matching_rule_decides(
    targets: ConfiguredTargets, initiator: str, address: str, luns: dict[int, str] | None
) -> None:
    assert targets.admit(NAMED, initiator, address) == luns


def test_without_initiators_nobody_is_admitted(targets: ConfiguredTargets) -> None:
    assert targets.admit(CLOSED, "iqn.1991-05.com.microsoft:node1.lab", "127.0.0.1") is None


def test_an_unknown_target_admits_nobody(targets: ConfiguredTargets) -> None:
    assert targets.admit("iqn.2026-11.lab.example:none", "iqn.x", "127.0.0.1") is None
    assert targets.get("iqn.2026-11.lab.example:none") is None


def test_target_names_compare_without_case(targets: ConfiguredTargets) -> None:
    assert targets.admit(OPEN.upper(), "iqn.x", "127.0.0.1") == {0: "b"}
    assert targets.get(OPEN.upper()) is targets.get(OPEN) is not None


def test_discovery_shows_what_admits(targets: ConfiguredTargets) -> None:
    assert targets.visible_targets("iqn.1993-08.org.debian:x", "192.0.2.9") == [OPEN]
    assert targets.visible_targets("iqn.1994-05.com.redhat:x", "192.0.2.9") == [NAMED, OPEN]


def test_credentials_and_limits_for_the_engine(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"secret-number-{name}")
    (tmp_path / "config.toml").write_text(
        '[targets."iqn.2026-11.lab.example:x"]\n'
        'chap = { user = "u", secret_file = "one" }\n'
        'mutual_chap = { user = "t", secret_file = "two" }\n'
        'header_digest = "required"\n'
        'data_digest = "off"\n'
        "limits.max_outstanding_r2t = 3\n"
        '[targets."iqn.2026-11.lab.example:y"]\n'
    )
    first, second = load_config(tmp_path / "config.toml").targets.values()
    assert credentials(first) == Credentials("u", b"secret-number-one", "t", b"secret-number-two")
    assert credentials(second) is None
    limits = engine_limits(first)
    assert (limits.header_digest, limits.data_digest) == ("CRC32C", "None")
    assert limits.max_outstanding_r2t == 3
    assert engine_limits(second) == EngineLimits()
