"""Reservations across restarts of the server and of the host, and saves that fail."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiscsi_target.scsi.reservation_store import ReservationsNotSaved
from pyiscsi_target.scsi.reservations import NOTHING, Reservation, ReservationType, State
from pyiscsi_target.server.reservation_state import (
    StoredReservations,
    document_name,
    read_boot_id,
)
from pyiscsi_target.server.state_store import StateStore

ONE = ("iqn.2026-11.lab.example:one,i,0x400001370000", 1)
TWO = ("iqn.2026-11.lab.example:zw\u00f6lf,i,0x400001370000", 2)
KEYS = {TWO: 0x4D73_6674_0000_0001, ONE: 0xFFFF_FFFF_FFFF_FFFF}
DISK = "Quorum disk 1"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    opened = StateStore(tmp_path / "state")
    yield opened
    opened.close()


def states(aptpl: bool) -> list[State]:
    kinds = [Reservation(kind, None if kind in (7, 8) else TWO) for kind in ReservationType]
    return [State(KEYS, kind, 9, aptpl) for kind in (None, *kinds)]


def test_a_disk_without_a_document_has_no_reservations(store: StateStore) -> None:
    assert StoredReservations(store, "boot").load(DISK) == NOTHING


@pytest.mark.parametrize("state", [*states(True), *states(False)])
async def test_a_restart_of_the_server_keeps_everything(store: StateStore, state: State) -> None:
    await StoredReservations(store, "boot").save(DISK, state)
    loaded = StoredReservations(store, "boot").load(DISK)
    assert loaded == state
    assert list(loaded.registrations) == list(state.registrations)


@pytest.mark.parametrize("state", states(True))
async def test_aptpl_survives_a_loss_of_power(store: StateStore, state: State) -> None:
    await StoredReservations(store, "boot").save(DISK, state)
    after = State(state.registrations, state.reservation, 0, aptpl=True)
    assert StoredReservations(store, "another boot").load(DISK) == after


@pytest.mark.parametrize("state", states(False))
async def test_without_aptpl_a_loss_of_power_ends_it(store: StateStore, state: State) -> None:
    await StoredReservations(store, "boot").save(DISK, state)
    assert StoredReservations(store, "another boot").load(DISK) == NOTHING


async def test_what_a_loss_of_power_ended_stays_ended(store: StateStore) -> None:
    """Loading saves nothing; the next boot must not take the old state for its own."""
    await StoredReservations(store, "first").save(DISK, State(KEYS, generation=3))
    second = StoredReservations(store, "second")
    assert second.load(DISK) == NOTHING
    await second.save(DISK, State({ONE: 1}, generation=1))
    assert StoredReservations(store, "second").load(DISK) == State({ONE: 1}, generation=1)


async def test_each_disk_has_its_own(store: StateStore) -> None:
    reservations = StoredReservations(store, "boot")
    await reservations.save("a", State({ONE: 1}))
    await reservations.save("b", State({TWO: 2}))
    assert reservations.load("a") == State({ONE: 1})
    assert reservations.load("b") == State({TWO: 2})


async def test_a_save_that_fails_says_why_and_leaves_the_one_before(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservations = StoredReservations(store, "boot")
    await reservations.save(DISK, State({ONE: 1}))
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("os.fsync", fail)
        with pytest.raises(ReservationsNotSaved, match="No space left"):
            await reservations.save(DISK, State({TWO: 2}))
    assert reservations.load(DISK) == State({ONE: 1})


async def test_damage_falls_back_loudly(
    store: StateStore, caplog: pytest.LogCaptureFixture
) -> None:
    reservations = StoredReservations(store, "boot")
    await reservations.save(DISK, State({ONE: 1}))
    await reservations.save(DISK, State({ONE: 1, TWO: 2}))
    (store.directory / f"{document_name(DISK)}.json").write_text("{")
    assert reservations.load(DISK) == State({ONE: 1})
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


ENTRY = {"initiator_port": "i", "target_port": 1, "key": "1", "holder": False}
DOCUMENT = {"boot_id": "boot", "generation": 1, "aptpl": False, "type": 5, "registrations": []}


@pytest.mark.parametrize(
    "wrong",
    [
        {"registrations": None},
        {"registrations": [{}]},
        {"registrations": [{**ENTRY, "key": "x"}], "type": None},
        {"registrations": [ENTRY]},
        {"registrations": [{**ENTRY, "holder": True}], "type": 2},
        {"registrations": [{**ENTRY, "holder": True}], "type": 7},
        {"type": 7},
        {"generation": None, "type": None},
    ],
)
def test_a_document_that_makes_no_sense(
    store: StateStore, wrong: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    """Better to refuse commands than to forget a reservation."""
    store.save(document_name(DISK), {**DOCUMENT, **wrong})
    assert StoredReservations(store, "boot").load(DISK) == State(lost=True)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.messages == ["reservations_lost"]


async def test_both_generations_damaged(
    store: StateStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The one disk is lost until somebody replaces what it knew; then it is as any other."""
    reservations = StoredReservations(store, "boot")
    await reservations.save(DISK, State({ONE: 1}))
    await reservations.save(DISK, State({ONE: 1, TWO: 2}))
    for path in store.directory.glob(f"{document_name(DISK)}.json*"):
        path.write_text("{")
    assert reservations.load(DISK) == State(lost=True)
    assert "reservations_lost" in caplog.text
    await reservations.save(DISK, State({ONE: 3}))
    assert reservations.load(DISK) == State({ONE: 3})


def test_the_boot_id(tmp_path: Path) -> None:
    path = tmp_path / "boot_id"
    assert read_boot_id(path) == ""
    path.write_text("0aa1\n")
    assert read_boot_id(path) == "0aa1"
