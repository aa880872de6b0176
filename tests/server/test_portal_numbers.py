"""Portals keep their numbers, whatever happens to the list that they stand in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiscsi_target.server.config_values import Endpoint
from pyiscsi_target.server.portal_numbers import number_portals
from pyiscsi_target.server.state_store import StateError, StateStore

A, B, C = (Endpoint("192.0.2.1", port) for port in (3260, 3261, 3262))
FREE = Endpoint("127.0.0.1", 0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    opened = StateStore(tmp_path)
    yield opened
    opened.close()


def test_the_first_numbers_are_those_of_the_list(store: StateStore) -> None:
    assert number_portals([B, A, C], store) == [1, 2, 3]


def test_numbers_stay_when_the_list_is_sorted_anew(store: StateStore) -> None:
    number_portals([A, B, C], store)
    assert number_portals([C, A, B], store) == [3, 1, 2]


def test_a_portal_in_front_takes_no_number_of_others(store: StateStore) -> None:
    number_portals([A, B], store)
    assert number_portals([C, A, B], store) == [3, 1, 2]


def test_an_address_that_is_exchanged_keeps_the_number(store: StateStore) -> None:
    number_portals([A, B], store)
    assert number_portals([C, B], store) == [1, 2]
    assert number_portals([B, A, C], store) == [2, 3, 1]


def test_free_ports_are_told_apart(store: StateStore) -> None:
    assert number_portals([FREE, A, FREE], store) == [1, 2, 3]
    assert number_portals([FREE, FREE, A], store) == [1, 3, 2]


def test_numbers_that_make_no_sense(store: StateStore) -> None:
    store.save("portals", {"numbers": {"192.0.2.1:3260": None}})
    with pytest.raises(StateError, match="portals"):
        number_portals([A], store)
