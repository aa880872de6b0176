"""What a server serves, as plain rows for whoever prints them. Values in, text out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .config_model import Config, DiskConfig, InitiatorRule, TargetConfig
from .config_values import format_size

NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One target: its LUNs, one line each, who is admitted, and on what terms."""

    name: str
    luns: tuple[str, ...]
    admitted: tuple[str, ...]
    terms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """All targets, and the portals that all of them are reached at."""

    targets: tuple[TargetRow, ...]
    portals: tuple[str, ...]


def overview_of(
    config: Config, sizes_bytes: Mapping[str, int], portals: Iterable[object]
) -> Overview:
    """What `config` serves; `sizes_bytes` by disk name as opened, `portals` as bound."""
    rows = (
        TargetRow(
            name=name,
            luns=tuple(_luns(target.luns, config.disks, sizes_bytes)),
            admitted=tuple(map(_rule, target.initiators)) or (NOBODY,),
            terms=tuple(_terms(target)),
        )
        for name, target in config.targets.items()
    )
    return Overview(tuple(rows), tuple(str(portal) for portal in portals))


def _luns(
    luns: Mapping[int, str], disks: Mapping[str, DiskConfig], sizes_bytes: Mapping[str, int]
) -> Iterable[str]:
    for lun, disk in sorted(luns.items()):
        size_bytes = sizes_bytes.get(disk, disks[disk].size_bytes)
        size = "size unknown" if size_bytes is None else format_size(size_bytes)
        read_only = ", read only" if disks[disk].read_only else ""
        volatile = ", volatile" if disks[disk].is_volatile else ""
        yield f"{lun}: {disk}, {size}{read_only}{volatile}"


def _rule(rule: InitiatorRule) -> str:
    if rule.luns is None:
        return str(rule)
    own = ", ".join(f"{lun}: {disk}" for lun, disk in sorted(rule.luns.items()))
    return f"{rule} ({own or 'no LUNs'})"


def _terms(target: TargetConfig) -> Iterable[str]:
    if target.mutual_chap:
        yield "mutual CHAP"
    elif target.chap:
        yield "CHAP"
    for name, digest in (("header", target.header_digest), ("data", target.data_digest)):
        if digest == "required":
            yield f"{name} digest"
