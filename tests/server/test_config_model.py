"""Ranges and rules of single values, each at its edges."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pyiscsi_target.iscsi.keys import Limits as EngineLimits
from pyiscsi_target.server.config_model import (
    DiskConfig,
    InitiatorRule,
    LoadContext,
    ServerConfig,
    TargetConfig,
    TargetLimits,
)

CONTEXT = LoadContext(Path("/base"), frozenset({"a", "b"}))


def disk(**keys: Any) -> DiskConfig:
    return DiskConfig.model_validate({"path": "x", **keys}, context=CONTEXT)


def rule(value: object) -> InitiatorRule:
    return InitiatorRule.model_validate(value, context=CONTEXT)


@pytest.mark.parametrize(
    "keys",
    [
        {"block_size": 1024},
        {"block_size": "512"},
        {"block_size": 4096, "physical_block_size": 512},
        {"physical_block_size": 600},
        {"physical_block_size": 2**21},
        {"block_size": 4096, "size": 512},
        {"vendor": "NINECHARS"},
        {"vendor": ""},
        {"product": "x" * 17},
        {"serial": "b\u00fcro"},
        {"serial": "a\tb"},
        {"path": ""},
        {"path": "ram:"},
        {"kind": "differencing", "size": 512},
        {"kind": "fixed"},
        {"kind": "fixed", "path": "ram:", "size": 512},
        {"thin": 1},
        {"space_warning": -1},
        {"path": "a.vhdx", "differencing_of": "b.vhd"},
        {"path": "a.img", "differencing_of": "b.img"},
        {"path": "a.vhdx", "differencing_of": "b.vhdx", "size": 1 << 20},
        {"discard_on_exit": True, "read_only": True},
        {"path": "ram:", "size": 512, "discard_on_exit": True},
        {"space_limit": "1 GiB"},
        {"space_limit": 0, "path": "a.vhdx"},
        {"space_limit": "1 GiB", "path": "ram:", "size": 512},
        {"space_limit": "1 GiB", "path": "a.vhdx", "read_only": True},
        {"space_limit": "1 GiB", "path": "a.vhdx", "discard_on_exit": True},
        {"space_warning": False},
        {"space_warning": "2 PiB"},
    ],
)
def test_disks_that_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        disk(**keys)


def test_the_space_warning() -> None:
    assert disk().space_warning == 1 << 30
    assert disk(space_warning=0).space_warning == 0
    assert disk(space_warning="5 GiB").space_warning == 5 << 30


def test_the_space_limit() -> None:
    assert disk().space_limit is None
    assert disk(space_limit="5 GiB", path="a.vhd").space_limit == 5 << 30


def test_the_kind_of_a_new_file() -> None:
    assert disk(size=512).kind == "dynamic"
    assert disk(size=512, kind="fixed").kind == "fixed"


def test_disk_defaults() -> None:
    plain = disk()
    assert (plain.block_size, plain.size_bytes, plain.read_only) == (512, None, False)
    assert (plain.write_cache, plain.thin, plain.is_volatile) == (True, True, False)


@pytest.mark.parametrize(
    ("path", "resolved"),
    [("x", "/base/x"), ("/dev/sdb", "/dev/sdb"), ("ram:", "ram:"), ("ram:x", "ram:x")],
)
def test_disk_paths_resolve_against_the_file(path: str, resolved: str) -> None:
    assert disk(path=path, size=512).path == resolved


@pytest.mark.parametrize(
    ("value", "name", "address"),
    [
        ("*", "*", None),
        ("IQN.2026-11.lab.example:A", "iqn.2026-11.lab.example:a", None),
        ("iqn.2026-11.lab.example:A*", "iqn.2026-11.lab.example:a*", None),
        ("eui.0123456789ABCDEF", "eui.0123456789abcdef", None),
        ("i?n.*", "i?n.*", None),
        ("192.0.2.7", None, "192.0.2.7/32"),
        ("192.0.2.0/24", None, "192.0.2.0/24"),
        ("2001:db8::/32", None, "2001:db8::/32"),
        ({"name": "iqn.*", "address": "::1"}, "iqn.*", "::1/128"),
    ],
)
def test_rules(value: object, name: str | None, address: str | None) -> None:
    parsed = rule(value)
    assert parsed.name == name
    assert (parsed.address and str(parsed.address)) == address


@pytest.mark.parametrize(
    "value",
    [
        "",
        "node1",
        "ign.*",
        "lab*",
        "192.0.2.7/24",
        "iqn.bad",
        7,
        {},
        {"name": ""},
        {"address": "x"},
    ],
)
def test_rules_that_are_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        rule(value)


def test_a_rule_says_whom_it_admits() -> None:
    both = rule({"name": "iqn.*", "address": "192.0.2.0/24"})
    assert str(both) == "iqn.* at 192.0.2.0/24"
    assert [str(rule(text)) for text in ("*", "192.0.2.7", "::1")] == ["*", "192.0.2.7", "::1"]


@pytest.mark.parametrize("length", [512, 2**24 - 1])
def test_limits_reach_as_far_as_the_keys(length: int) -> None:
    lengths = dict.fromkeys(
        ("max_recv_data_segment_length", "max_burst_length", "first_burst_length"), length
    )
    assert TargetLimits.model_validate(lengths).max_burst_length == length


@pytest.mark.parametrize(
    "limits",
    [
        {"max_recv_data_segment_length": 511},
        {"max_burst_length": 2**24},
        {"first_burst_length": "2 MiB"},
        {"queue_depth": 0},
        {"max_sessions": 65536},
        {"initial_r2t": "Yes"},
    ],
)
def test_limits_that_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TargetLimits.model_validate(limits)


def test_default_limits_are_the_engines_own() -> None:
    ours, engine = TargetLimits(), EngineLimits()
    for key in TargetLimits.model_fields.keys() - {"max_sessions", "queue_depth"}:
        assert getattr(ours, key) == getattr(engine, key)


def test_portals_are_distinct_but_free_ports_may_repeat() -> None:
    assert len(ServerConfig.model_validate({"portals": ("[::1]:0", "[::1]:0")}).portals) == 2
    for portals in (("127.0.0.1:1", "127.0.0.1:1"), ()):
        with pytest.raises(ValidationError):
            ServerConfig.model_validate({"portals": portals})


def test_nothing_changes_after_loading() -> None:
    with pytest.raises(ValidationError):
        TargetConfig().alias = "x"
