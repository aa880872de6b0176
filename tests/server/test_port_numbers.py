"""Portals and ports keep their numbers, whatever happens to the lists that they stand in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiscsi_target.server.config_values import Endpoint
from pyiscsi_target.server.port_numbers import number_portals, number_ports
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


def test_each_target_has_a_port_at_each_portal(store: StateStore) -> None:
    ports = number_ports(["iqn.a", "iqn.b"], [1, 2], store)
    assert ports == {("iqn.a", 1): 1, ("iqn.a", 2): 2, ("iqn.b", 1): 3, ("iqn.b", 2): 4}


def test_ports_keep_their_numbers_beside_new_ones(store: StateStore) -> None:
    number_ports(["iqn.a"], [1], store)
    ports = number_ports(["iqn.b", "iqn.a"], [2, 1], store)
    assert ports[("iqn.a", 1)] == 1
    assert sorted(ports.values()) == [1, 2, 3, 4]


def test_a_target_that_is_renamed_keeps_its_ports(store: StateStore) -> None:
    number_ports(["iqn.a", "iqn.b"], [1], store)
    assert number_ports(["iqn.c", "iqn.b"], [1], store) == {("iqn.c", 1): 1, ("iqn.b", 1): 2}
