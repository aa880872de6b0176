"""What a valid config says but its author likely did not mean. Looks at modes of secret files."""

import os
from collections.abc import Iterator

from . import names
from .config_lines import KeyPath
from .config_model import Authentication, Config, TargetConfig, is_pattern
from .config_values import MAX_WINDOWS_SECRET_BYTES, Secret

Advice = tuple[KeyPath, str]


def advise(config: Config) -> Iterator[Advice]:
    """Each doubt as the key that raises it and what to do about it."""
    if not config.targets:
        yield (), 'no targets: nothing is served; add a [targets."iqn..."] section'
    yield from _authentication(("server", "discovery"), config.server.discovery)
    for name, target in config.targets.items():
        path = ("targets", name)
        yield from _authentication(path, target)
        yield from _admission(path, target)
        yield from _luns(path, target)
    yield from _unused_disks(config)


def _admission(path: KeyPath, target: TargetConfig) -> Iterator[Advice]:
    if not target.initiators:
        yield path, "admits nobody; add initiators = [...]"
    for index, rule in enumerate(target.initiators):
        strange = "" if rule.name is None else names.prohibited_characters(rule.name)
        if strange and rule.name is not None and not is_pattern(rule.name):
            yield (
                (*path, "initiators", index),
                f"has characters that RFC 3722 does not allow: {strange}; "
                "check that the initiator really has this name",
            )


def _luns(path: KeyPath, target: TargetConfig) -> Iterator[Advice]:
    maps = [((*path, "luns"), target.luns)]
    maps += [
        ((*path, "initiators", index, "luns"), rule.luns)
        for index, rule in enumerate(target.initiators)
        if rule.luns is not None
    ]
    needs_default = any(rule.luns is None for rule in target.initiators)
    for where, luns in maps:
        if luns and 0 not in luns:
            yield where, "has no LUN 0; give a disk number 0, since Windows looks there first"
        if not luns and (where != (*path, "luns") or needs_default):
            yield where, "is empty; whoever gets this LUN map sees no disk"


def _unused_disks(config: Config) -> Iterator[Advice]:
    used: set[str] = set()
    for target in config.targets.values():
        used.update(target.luns.values())
        for rule in target.initiators:
            used.update((rule.luns or {}).values())
    for name in config.disks:
        if name not in used:
            yield ("disks", name), "is on no target; give it a LUN or remove it"


def _authentication(path: KeyPath, authentication: Authentication) -> Iterator[Advice]:
    for key in ("chap", "mutual_chap"):
        chap = getattr(authentication, key)
        if chap is not None:
            for why in _secret_doubts(chap.secret):
                yield (*path, key, "secret_file"), why


def _secret_doubts(secret: Secret) -> Iterator[str]:
    length_bytes = len(secret.reveal())
    if length_bytes > MAX_WINDOWS_SECRET_BYTES:
        yield (
            f"holds a secret of {length_bytes} bytes; Windows takes 12 to "
            f"{MAX_WINDOWS_SECRET_BYTES}"
        )
    mode = _shared_mode(secret)
    if mode:
        yield f"can be read by others (mode {mode:04o}); run chmod 600 {secret.path}"


def _shared_mode(secret: Secret) -> int:
    """The file's permission bits if any are for others than its owner, else 0."""
    if os.name != "posix":
        return 0
    try:
        mode = secret.path.stat().st_mode & 0o777
    except OSError:
        return 0
    return mode if mode & 0o077 else 0
