"""Each disk's identity: drawn once, stored, and the same for ever after.

The seed hangs on the disk's name in the config, so it stays when the file moves or grows. What
the config overrides comes on top and is not stored.
"""

import secrets
from collections.abc import Callable, Mapping

from ..scsi.identifiers import DEFAULT_PRODUCT, DEFAULT_VENDOR, SEED_BITS, Identity
from .config_model import DiskConfig
from .state_store import StateError, StateStore

DOCUMENT = "identities"


def identities_of(
    disks: Mapping[str, DiskConfig],
    store: StateStore,
    random_bits: Callable[[int], int] = secrets.randbits,
) -> dict[str, Identity]:
    """The identity of every disk by name; new disks' are stored before this returns.

    Disks that are no longer in the config keep their place, in case they come back. Raises
    StateError.
    """
    stored = dict((store.load(DOCUMENT) or {}).get("disks", {}))
    new = [name for name in disks if name not in stored]
    for name in new:
        stored[name] = _draw(random_bits)
    if new:
        store.save(DOCUMENT, {"disks": stored})
    return {name: _identity(name, stored[name], disk) for name, disk in disks.items()}


def _draw(random_bits: Callable[[int], int]) -> dict[str, str]:
    seed = random_bits(SEED_BITS)
    identity = Identity.from_seed(seed, vendor=DEFAULT_VENDOR, product=DEFAULT_PRODUCT)
    return {
        "seed": f"{seed:016x}",
        "vendor": identity.vendor,
        "product": identity.product,
        "serial": identity.serial,
    }


def _identity(name: str, stored: Mapping[str, str], disk: DiskConfig) -> Identity:
    try:
        return Identity.from_seed(
            int(stored["seed"], 16),
            vendor=disk.vendor or stored["vendor"],
            product=disk.product or stored["product"],
            serial=disk.serial or stored["serial"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"{DOCUMENT}: disk {name!r} is stored wrongly: {error}") from error
