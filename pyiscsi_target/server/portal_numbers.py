"""The numbers of portals: portal group tags, and so relative target port identifiers.

Registrations hang on them, so a portal keeps its number when the config's list is sorted anew or
grows (SPC-5 clause 4.2.2: an identifier should not change). The numbers live in the state store.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import count

from .config_values import Endpoint
from .state_store import StateError, StateStore

_DOCUMENT = "portals"


def number_portals(endpoints: Sequence[Endpoint], store: StateStore) -> list[int]:
    """The number of each endpoint, from 1 on, stored before it is returned. Raises StateError.

    An endpoint that is new takes the lowest number that no other of the list has: where an address
    is exchanged for another, the registrations made through the old one stay in force.
    """
    stored = _stored(store)
    keys = _keys(endpoints)
    numbers = {key: stored[key] for key in keys if key in stored}
    free = (number for number in count(1) if number not in numbers.values())
    for key in keys:
        if key not in numbers:
            numbers[key] = next(free)
    if numbers != stored:
        store.save(_DOCUMENT, {"numbers": numbers})
    return [numbers[key] for key in keys]


def _keys(endpoints: Sequence[Endpoint]) -> list[str]:
    """Endpoints as written; those of equal text (port 0 may come twice) are told apart by order."""
    seen: Counter[str] = Counter()
    keys = []
    for endpoint in endpoints:
        text = str(endpoint)
        seen[text] += 1
        keys.append(text if seen[text] == 1 else f"{text} {seen[text]}")
    return keys


def _stored(store: StateStore) -> dict[str, int]:
    document = store.load(_DOCUMENT)
    if document is None:
        return {}
    try:
        return {str(key): int(number) for key, number in document["numbers"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StateError(f"the numbers of the portals are stored wrongly: {error!r}") from error
