"""What a config file may say: its tables, keys, types, ranges and defaults, each stated here once.

Models check what one table can say about itself, and the names of disks through `LoadContext`.
Messages read "what is wrong; what would be right": `config.load_config` adds file, line, key and
value. Knows neither sockets nor stores.
"""

import ipaddress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..iscsi.constants import ISCSI_PORT
from ..iscsi.keys import LONGEST
from ..iscsi.keys import Limits as EngineLimits
from ..scsi.identifiers import PRODUCT_LENGTH, SERIAL_MAXIMUM_LENGTH, VENDOR_LENGTH
from ..storage import open as storage
from ..storage.create import ImageFormat, format_of
from . import names
from .config_values import (
    Endpoint,
    Secret,
    format_size,
    parse_endpoint,
    parse_network,
    parse_size,
    read_secret,
)

MAX_SPACE_WARNING_BYTES = 1 << 50  # the mode page's count has 32 bits
MAX_LUN = 255  # Windows asks for no more, and single-level LUNs need one byte

_OFFERED = EngineLimits()


@dataclass(slots=True)
class LoadContext:
    """What a value needs to know beyond itself while a file is read."""

    base_dir: Path
    disk_names: frozenset[str] = frozenset()
    one_way_secrets: set[bytes] = field(default_factory=set)
    mutual_secrets: set[bytes] = field(default_factory=set)


def _context(info: ValidationInfo) -> LoadContext:
    return info.context if isinstance(info.context, LoadContext) else LoadContext(Path.cwd())


def _as_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text in quotes")
    if not value:
        raise ValueError("is empty; write something or leave the key out")
    return value


def _read_path(value: object, info: ValidationInfo) -> Path:
    """A path of the file: relative ones start at the config file's own directory."""
    return _context(info).base_dir / Path(_as_text(value)).expanduser()


def _read_disk_path(value: object, info: ValidationInfo) -> str:
    return storage.resolve_path(_as_text(value), _context(info).base_dir)


def _read_secret_file(value: object, info: ValidationInfo) -> Secret:
    path = _read_path(value, info)
    return Secret(read_secret(path), path)


def _read_lun_number(value: object) -> int:
    text = value if isinstance(value, str) else ""
    if not (text.isascii() and text.isdigit() and text == str(int(text))):
        raise ValueError(f"is not a LUN; use a number from 0 to {MAX_LUN}")
    if int(text) > MAX_LUN:
        raise ValueError(f"is too high for a LUN; use a number from 0 to {MAX_LUN}")
    return int(text)


def _check_disk_name(name: str, info: ValidationInfo) -> str:
    known = sorted(_context(info).disk_names)
    if name in known:
        return name
    near = get_close_matches(name, known, n=1)
    if near:
        raise ValueError(f"is not a disk; did you mean {near[0]!r}?")
    raise ValueError(f"is not a disk; add [disks.{name}] or use one of: {', '.join(known) or '-'}")


def _check_lun_map(luns: dict[int, str]) -> dict[int, str]:
    seen: dict[str, int] = {}
    for lun, disk in luns.items():
        if disk in seen:
            raise ValueError(
                f"gives disk {disk!r} two LUNs, {seen[disk]} and {lun}; keep one of them"
            )
        seen[disk] = lun
    return luns


def _printable_ascii(value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise ValueError("has characters other than printable ASCII; use letters and digits")
    return value


def _parse_space_warning(value: object) -> int:
    size_bytes = 0 if value == 0 and not isinstance(value, bool) else parse_size(value)
    if size_bytes > MAX_SPACE_WARNING_BYTES:
        raise ValueError(f"is too much; write at most {format_size(MAX_SPACE_WARNING_BYTES)}")
    return size_bytes


Size = Annotated[int, BeforeValidator(parse_size)]
DiskName = Annotated[str, AfterValidator(_check_disk_name)]
LunNumber = Annotated[int, BeforeValidator(_read_lun_number)]
LunMap = Annotated[dict[LunNumber, DiskName], AfterValidator(_check_lun_map)]
ConfigPath = Annotated[Path, BeforeValidator(_read_path)]
Portal = Annotated[
    InstanceOf[Endpoint], BeforeValidator(lambda v: parse_endpoint(_as_text(v), ISCSI_PORT))
]
ListenAddress = Annotated[
    InstanceOf[Endpoint], BeforeValidator(lambda v: parse_endpoint(_as_text(v)))
]
AddressRule = Annotated[
    InstanceOf[ipaddress.IPv4Network] | InstanceOf[ipaddress.IPv6Network],
    BeforeValidator(lambda v: parse_network(_as_text(v))),
]
SectionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
TargetName = Annotated[str, AfterValidator(names.check_name)]
Digest = Literal["off", "offered", "required"]


class _Section(BaseModel):
    """A table: its keys are known, its types are meant, its values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class ChapConfig(_Section):
    """Who proves what: a name and a secret (RFC 7143 section 12.1.3)."""

    user: str = Field(min_length=1, max_length=255, examples=["cluster"])
    secret: Annotated[InstanceOf[Secret], BeforeValidator(_read_secret_file)] = Field(
        alias="secret_file", examples=["secrets/cluster"]
    )


class Authentication(_Section):
    """CHAP of the initiator (`chap`) and, on top, of this target (`mutual_chap`)."""

    chap: ChapConfig | None = None
    mutual_chap: ChapConfig | None = None

    @field_validator("chap")
    @classmethod
    def _one_way(cls, chap: ChapConfig | None, info: ValidationInfo) -> ChapConfig | None:
        context = _context(info)
        if chap is not None:
            context.one_way_secrets.add(chap.secret.reveal())
            _refuse_shared_secret(chap, context.mutual_secrets, "mutual_chap")
        return chap

    @field_validator("mutual_chap")
    @classmethod
    def _mutual(cls, mutual: ChapConfig | None, info: ValidationInfo) -> ChapConfig | None:
        context = _context(info)
        if mutual is None:
            return None
        if info.data.get("chap", ...) is None:
            raise ValueError("stands alone; add chap, since mutual CHAP comes on top of it")
        context.mutual_secrets.add(mutual.secret.reveal())
        _refuse_shared_secret(mutual, context.one_way_secrets, "chap")
        return mutual


def _refuse_shared_secret(chap: ChapConfig, others: set[bytes], other_use: str) -> None:
    """RFC 7143 section 9.2.1: one secret must not authenticate both sides."""
    if chap.secret.reveal() in others:
        raise ValueError(
            f"has the secret of a {other_use}; use different secrets for the two directions"
        )


class ServerConfig(_Section):
    """[server]: what all targets share."""

    portals: tuple[Portal, ...] = Field(
        default=(Endpoint("0.0.0.0", ISCSI_PORT), Endpoint("::", ISCSI_PORT)), min_length=1
    )
    state_dir: ConfigPath = Field(default="state", validate_default=True)
    metrics: ListenAddress | None = None
    discovery: Authentication = Authentication()
    max_connections: int = Field(default=1024, ge=1, le=65535)
    max_connections_per_address: int = Field(default=512, ge=1, le=65535)
    login_timeout_s: float = Field(default=15.0, ge=0.1, le=600)
    ping_interval_s: float = Field(default=30.0, ge=0.1, le=86400)
    ping_timeout_s: float = Field(default=15.0, ge=0.1, le=86400)
    drain_timeout_s: float = Field(default=10.0, ge=0, le=600)

    @field_validator("portals")
    @classmethod
    def _distinct(cls, portals: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        for portal in portals:
            if portal.port and portals.count(portal) > 1:
                raise ValueError(f"names {portal} twice; keep one of them")
        return portals


class DiskConfig(_Section):
    """[disks.NAME]: one logical unit and the bytes behind it."""

    path: Annotated[str, BeforeValidator(_read_disk_path)] = Field(examples=["disks/data.img"])
    block_size: Literal[512, 4096] = 512
    physical_block_size: int | None = Field(default=None, ge=512, le=1024 * 1024)
    size_bytes: Size | None = Field(default=None, alias="size", validate_default=True)
    kind: Literal["fixed", "dynamic"] = Field(default="dynamic", validate_default=False)
    differencing_of: ConfigPath | None = Field(default=None, examples=["golden.vhdx"])
    read_only: bool = False
    discard_on_exit: bool = False
    removable: bool = False
    write_cache: bool = True
    thin: bool = True
    space_limit: Size | None = Field(default=None, examples=["20 GiB"])
    space_warning: Annotated[int, BeforeValidator(_parse_space_warning)] = 1 << 30
    vendor: Annotated[str, AfterValidator(_printable_ascii)] | None = Field(
        default=None, min_length=1, max_length=VENDOR_LENGTH
    )
    product: Annotated[str, AfterValidator(_printable_ascii)] | None = Field(
        default=None, min_length=1, max_length=PRODUCT_LENGTH
    )
    serial: Annotated[str, AfterValidator(_printable_ascii)] | None = Field(
        default=None, min_length=1, max_length=SERIAL_MAXIMUM_LENGTH
    )

    @property
    def is_volatile(self) -> bool:
        return self.discard_on_exit or storage.is_volatile(self.path)

    @field_validator("kind")
    @classmethod
    def _kind_of_new_file(cls, kind: str, info: ValidationInfo) -> str:
        if storage.is_volatile(info.data.get("path", "")):
            raise ValueError("is for files, and this disk is memory; leave it out")
        if info.data.get("size_bytes") is None:
            raise ValueError(
                "is for a file that is to be created; give its size too, or leave it out"
            )
        return kind

    @field_validator("differencing_of")
    @classmethod
    def _of_the_same_format(cls, parent: Path | None, info: ValidationInfo) -> Path | None:
        if parent is None:
            return None
        if info.data.get("size_bytes") is not None:
            raise ValueError("makes the disk as large as its parent; leave size and kind out")
        formats = format_of(parent), format_of(Path(info.data.get("path", "")))
        if formats[0] is not formats[1] or ImageFormat.RAW in formats:
            raise ValueError("and path must both be .vhdx files, or both .vhd files")
        return parent

    @field_validator("discard_on_exit")
    @classmethod
    def _something_to_discard(cls, discards: bool, info: ValidationInfo) -> bool:
        if discards and info.data.get("read_only"):
            raise ValueError("has nothing to discard, for the disk is read_only; keep one of them")
        if discards and storage.is_volatile(info.data.get("path", "")):
            raise ValueError("is for files, and memory is gone anyway; leave it out")
        return discards

    @field_validator("space_limit")
    @classmethod
    def _of_what_grows(cls, limit_bytes: int | None, info: ValidationInfo) -> int | None:
        if limit_bytes is None:
            return None
        if format_of(Path(info.data.get("path", ""))) is ImageFormat.RAW:
            raise ValueError("is for .vhd and .vhdx images, whose files grow; leave it out")
        if info.data.get("discard_on_exit") or info.data.get("read_only"):
            raise ValueError("is for images that are written, and this one never is; leave it out")
        return limit_bytes

    @field_validator("physical_block_size")
    @classmethod
    def _physical_holds_logical(cls, physical: int | None, info: ValidationInfo) -> int | None:
        logical = info.data.get("block_size", 512)
        if physical is not None and (physical < logical or physical & (physical - 1)):
            raise ValueError(
                f"must be a power of two of at least block_size; use {max(logical, 4096)}"
            )
        return physical

    @field_validator("size_bytes")
    @classmethod
    def _whole_blocks(cls, size_bytes: int | None, info: ValidationInfo) -> int | None:
        path, block = info.data.get("path", ""), info.data.get("block_size", 512)
        if size_bytes is None and storage.is_volatile(path):
            raise ValueError("is missing, and a disk in memory needs it; add it, like '1 GiB'")
        if size_bytes is not None and size_bytes % block:
            right = -(-size_bytes // block) * block
            raise ValueError(f"is not a multiple of the block size {block}; use {right}")
        return size_bytes


class InitiatorRule(_Section):
    """Whom a target admits: a name or pattern, an address or network, or both at once.

    In the file a plain text stands for a rule without a LUN map of its own.
    """

    name: str | None = Field(default=None, min_length=1)
    address: AddressRule | None = None
    luns: LunMap | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value[:4].lower() in names.PREFIXES or is_pattern(value):
            return {"name": value}
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError(
                "is neither an initiator name, a pattern nor an address; "
                f"write {names.EXAMPLE_IQN!r}, 'iqn.*', '*' or '192.0.2.0/24'"
            ) from None
        return {"address": value}

    @field_validator("name")
    @classmethod
    def _normal_name(cls, name: str | None) -> str | None:
        if name is None or is_pattern(name):
            return name and _check_pattern(names.normalise(name))
        return names.check_form(name)

    @model_validator(mode="after")
    def _says_whom(self) -> Self:
        if self.name is None and self.address is None:
            raise ValueError("says not whom it admits; add name or address")
        return self

    def __str__(self) -> str:
        address = str(self.address or "")
        if self.address is not None and self.address.num_addresses == 1:
            address = str(self.address.network_address)
        return " at ".join(part for part in (self.name, address) if part)


def is_pattern(name: str) -> bool:
    """Whether the name has shell-style wildcards; no valid iSCSI name holds one of these."""
    return any(wildcard in name for wildcard in "*?[")


def _check_pattern(pattern: str) -> str:
    literal = next(i for i, character in enumerate(pattern) if character in "*?[")
    if not any(prefix[:literal] == pattern[:literal][:4] for prefix in names.PREFIXES):
        raise ValueError(
            "matches no iSCSI name, all of which begin with iqn., eui. or naa.; "
            "write a pattern like 'iqn.1991-05.com.microsoft:*'"
        )
    return pattern


class TargetLimits(_Section):
    """[targets."...".limits]: what this target brings to the negotiation (RFC 7143 section 13).

    The defaults are the engine's own.
    """

    max_recv_data_segment_length: Size = _OFFERED.max_recv_data_segment_length
    max_burst_length: Size = _OFFERED.max_burst_length
    first_burst_length: Size = _OFFERED.first_burst_length
    max_outstanding_r2t: int = Field(default=_OFFERED.max_outstanding_r2t, ge=1, le=65535)
    initial_r2t: bool = _OFFERED.initial_r2t
    immediate_data: bool = _OFFERED.immediate_data
    max_sessions: int = Field(default=256, ge=1, le=65535)
    queue_depth: int = Field(default=128, ge=1, le=4096)

    @field_validator("max_recv_data_segment_length", "max_burst_length", "first_burst_length")
    @classmethod
    def _in_range(cls, length: int, info: ValidationInfo) -> int:
        if not 512 <= length <= LONGEST:
            raise ValueError(f"is out of range; use 512 to {LONGEST} bytes")
        longest = info.data.get("max_burst_length", length)
        if info.field_name == "first_burst_length" and length > longest:
            raise ValueError(f"is more than max_burst_length; use at most '{format_size(longest)}'")
        return length


class TargetConfig(Authentication):
    """[targets."iqn..."]: which LUNs, for whom, on what terms."""

    luns: LunMap = {}
    initiators: tuple[InitiatorRule, ...] = ()
    alias: str | None = Field(default=None, min_length=1, max_length=255)
    header_digest: Digest = "offered"
    data_digest: Digest = "offered"
    limits: TargetLimits = TargetLimits()

    @property
    def disks(self) -> frozenset[str]:
        """The names of the disks that it serves to anybody."""
        maps = [self.luns, *(rule.luns for rule in self.initiators if rule.luns)]
        return frozenset(disk for luns in maps for disk in luns.values())


class Config(_Section):
    """A whole config file."""

    server: ServerConfig = Field(default={}, validate_default=True)
    disks: dict[SectionName, DiskConfig] = {}
    targets: dict[TargetName, TargetConfig] = {}
