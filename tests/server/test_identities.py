"""Identities stay: over restarts, paths, sizes, and the comings and goings of other disks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiscsi_target.scsi.identifiers import DEFAULT_VENDOR
from pyiscsi_target.server.config_model import DiskConfig
from pyiscsi_target.server.identities import DOCUMENT, identities_of
from pyiscsi_target.server.state_store import StateError, StateStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    opened = StateStore(tmp_path)
    yield opened
    opened.close()


def disk(**keys: object) -> DiskConfig:
    return DiskConfig.model_validate({"path": "/x", **keys})


def test_a_disk_is_the_same_for_ever(store: StateStore) -> None:
    first = identities_of({"a": disk(), "b": disk()}, store)
    moved = identities_of({"b": disk(path="/y", size=512), "c": disk()}, store)
    back = identities_of({"a": disk()}, store)
    assert moved["b"] == first["b"]
    assert back["a"] == first["a"]
    assert len({identity.naa for identity in (*first.values(), moved["c"])}) == 3


def test_identities_are_stored_before_they_are_told(store: StateStore) -> None:
    identity = identities_of({"a": disk()}, store, random_bits=lambda bits: (1 << bits) - 1)["a"]
    document = store.load(DOCUMENT)
    assert document is not None
    assert document["disks"]["a"]["serial"] == identity.serial == "F" * 16


def test_nothing_is_saved_when_nothing_is_new(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities_of({"a": disk()}, store)
    monkeypatch.setattr(store, "save", None)
    identities_of({"a": disk()}, store)


def test_overrides_come_on_top_and_go_again(store: StateStore) -> None:
    plain = identities_of({"a": disk()}, store)["a"]
    dressed = identities_of({"a": disk(vendor="ACME", product="Disk", serial="S1")}, store)["a"]
    assert (dressed.vendor, dressed.product, dressed.serial) == ("ACME", "Disk", "S1")
    assert dressed.naa == plain.naa
    assert plain.vendor == DEFAULT_VENDOR
    assert identities_of({"a": disk()}, store)["a"] == plain


@pytest.mark.parametrize(
    "stored", [{}, {"seed": "xyz"}, {"seed": "1" * 17, "vendor": "", "product": "", "serial": ""}]
)
def test_a_stored_identity_that_makes_no_sense(store: StateStore, stored: dict[str, str]) -> None:
    store.save(DOCUMENT, {"disks": {"a": stored}})
    with pytest.raises(StateError, match="'a'"):
        identities_of({"a": disk()}, store)
