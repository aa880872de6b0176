"""Numbers that stay: portal group tags, and the relative target port identifiers of SCSI ports.

A portal is a portal group of its own, and with each target it makes one SCSI target port. Names and
registrations hang on these numbers, so they do not change when the config's lists are sorted anew
or grow (SPC-5 clause 4.2.2: an identifier should not change). They live in the state store.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count

from .config_values import Endpoint
from .state_store import StateError, StateStore

_PORTALS, _PORTS = "portals", "target-ports"


def number_portals(endpoints: Sequence[Endpoint], store: StateStore) -> list[int]:
    """The portal group tag of each endpoint, stored before it is returned. Raises StateError."""
    keys = _distinct(endpoints)
    numbers = _number(keys, _PORTALS, store)
    return [numbers[key] for key in keys]


def number_ports(
    targets: Sequence[str], portals: Sequence[int], store: StateStore
) -> Mapping[tuple[str, int], int]:
    """The relative target port identifier of each (target name, portal group tag).

    Distinct in all of the server, for a disk may be in several targets. Raises StateError.
    """
    keys = {f"{portal} {target}": (target, portal) for target in targets for portal in portals}
    numbers = _number(list(keys), _PORTS, store)
    return {pair: numbers[key] for key, pair in keys.items()}


def _number(keys: Sequence[str], document: str, store: StateStore) -> dict[str, int]:
    """Numbers from 1 on. What is new takes the lowest that nothing else in `keys` has.

    So where one is exchanged for another, what was registered through the old stays in force.
    """
    stored = _stored(document, store)
    numbers = {key: stored[key] for key in keys if key in stored}
    taken = set(numbers.values())
    free = (number for number in count(1) if number not in taken)
    for key in keys:
        if key not in numbers:
            numbers[key] = next(free)
    if numbers != stored:
        store.save(document, {"numbers": numbers})
    return numbers


def _distinct(endpoints: Sequence[Endpoint]) -> list[str]:
    """Endpoints as written; those of equal text (port 0 may come twice) are told apart by order."""
    seen: Counter[str] = Counter()
    keys = []
    for endpoint in endpoints:
        text = str(endpoint)
        seen[text] += 1
        keys.append(text if seen[text] == 1 else f"{text} {seen[text]}")
    return keys


def _stored(name: str, store: StateStore) -> dict[str, int]:
    document = store.load(name)
    if document is None:
        return {}
    try:
        return {str(key): int(number) for key, number in document["numbers"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StateError(f"the document {name!r} is stored wrongly: {error!r}") from error
