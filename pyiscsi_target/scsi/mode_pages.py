"""The mode pages of a disk: formats, default, changeable and current values (SPC-5, SBC-4).

One row of `PAGES` per page declares its format, its defaults and which of its fields an initiator
may change; `ModeState` holds the current values of one logical unit, shared by all nexuses. This
module knows neither the MODE SENSE and MODE SELECT commands nor unit attentions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from construct import BitsInteger, BitStruct, Default, Padding

from .limits import THRESHOLD_SET_BYTES
from .sense import invalid_parameter_field

if TYPE_CHECKING:
    from .logical_unit import DiskSettings

ALL_PAGES = 0x3F
ALL_SUBPAGES = 0xFF
SUBPAGE_FORMAT = 0x40  # SPF in byte 0 of a mode page

PageKey = tuple[int, int]  # page code, subpage code

CACHING_KEY: PageKey = (0x08, 0x00)
CONTROL_KEY: PageKey = (0x0A, 0x00)
PROVISIONING_KEY: PageKey = (0x1C, 0x02)


def _bits(width: int) -> Any:
    return Default(BitsInteger(width), 0)


# SBC-4, Read-Write Error Recovery mode page. Errors are the host's to recover: all zero.
READ_WRITE_ERROR_RECOVERY = BitStruct(
    "awre" / _bits(1),
    "arre" / _bits(1),
    "tb" / _bits(1),
    "rc" / _bits(1),
    "eer" / _bits(1),
    "per" / _bits(1),
    "dte" / _bits(1),
    "lbpere" / _bits(1),
    "read_retry_count" / _bits(8),
    Padding(24),
    Padding(8),
    "write_retry_count" / _bits(8),
    Padding(8),
    "recovery_time_limit" / _bits(16),
)

# SPC-5, Disconnect-Reconnect mode page. iSCSI negotiates bursts by login keys: zero is no limit.
DISCONNECT_RECONNECT = BitStruct(
    "buffer_full_ratio" / _bits(8),
    "buffer_empty_ratio" / _bits(8),
    "bus_inactivity_limit" / _bits(16),
    "disconnect_time_limit" / _bits(16),
    "connect_time_limit" / _bits(16),
    "maximum_burst_size" / _bits(16),
    "emdp" / _bits(1),
    "fair_arbitration" / _bits(3),
    "dimm" / _bits(1),
    "dtdc" / _bits(3),
    Padding(8),
    "first_burst_size" / _bits(16),
)

# SBC-4, Caching mode page
CACHING = BitStruct(
    "ic" / _bits(1),
    "abpf" / _bits(1),
    "cap" / _bits(1),
    "disc" / _bits(1),
    "size" / _bits(1),
    "wce" / _bits(1),
    "mf" / _bits(1),
    "rcd" / _bits(1),
    "demand_read_retention_priority" / _bits(4),
    "write_retention_priority" / _bits(4),
    "disable_prefetch_transfer_length" / _bits(16),
    "minimum_prefetch" / _bits(16),
    "maximum_prefetch" / _bits(16),
    "maximum_prefetch_ceiling" / _bits(16),
    "fsw" / _bits(1),
    "lbcss" / _bits(1),
    "dra" / _bits(1),
    Padding(2),
    "sync_prog" / _bits(2),
    "nv_dis" / _bits(1),
    "number_of_cache_segments" / _bits(8),
    "cache_segment_size" / _bits(16),
    Padding(32),
)

# SPC-5, Control mode page
CONTROL = BitStruct(
    "tst" / _bits(3),
    "tmf_only" / _bits(1),
    "dpicz" / _bits(1),
    "d_sense" / _bits(1),
    "gltsd" / _bits(1),
    "rlec" / _bits(1),
    "queue_algorithm_modifier" / _bits(4),
    "nuar" / _bits(1),
    "qerr" / _bits(2),
    Padding(1),
    Padding(1),
    "rac" / _bits(1),
    "ua_intlck_ctrl" / _bits(2),
    "swp" / _bits(1),
    Padding(3),
    "ato" / _bits(1),
    "tas" / _bits(1),
    "atmpe" / _bits(1),
    "rwwp" / _bits(1),
    Padding(1),
    "autoload_mode" / _bits(3),
    Padding(16),
    "busy_timeout_period" / _bits(16),
    "extended_self_test_completion_time" / _bits(16),
)

# SBC-4, Informational Exceptions Control mode page
INFORMATIONAL_EXCEPTIONS_CONTROL = BitStruct(
    "perf" / _bits(1),
    Padding(1),
    "ebf" / _bits(1),
    "ewasc" / _bits(1),
    "dexcpt" / _bits(1),
    "test" / _bits(1),
    "ebackerr" / _bits(1),
    "logerr" / _bits(1),
    Padding(4),
    "mrie" / _bits(4),
    "interval_timer" / _bits(32),
    "report_count" / _bits(32),
)

# SBC-4, Logical Block Provisioning mode page, with one threshold descriptor
LOGICAL_BLOCK_PROVISIONING = BitStruct(
    Padding(7),
    "situa" / _bits(1),
    Padding(11 * 8),
    "enabled" / _bits(1),
    Padding(1),
    "threshold_type" / _bits(3),
    "threshold_arming" / _bits(3),
    "threshold_resource" / _bits(8),
    Padding(16),
    "threshold_count" / _bits(32),
)
AVAILABLE_LBA_MAPPING_RESOURCE = 0x01

Fields = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ModePage:
    """One mode page: `format` lays out what follows its header.

    `defaults` gives the fields that are not zero; `changeable` those that MODE SELECT may change,
    with all ones.
    """

    code: int
    subpage: int
    name: str
    format: Any
    defaults: Callable[["DiskSettings"], Fields]
    changeable: Callable[["DiskSettings"], Fields]

    @property
    def key(self) -> PageKey:
        return self.code, self.subpage

    def build(self, fields: Fields) -> bytes:
        """The page's bytes after its header."""
        body: bytes = self.format.build(dict(fields))
        return body

    def header(self, body_length: int) -> bytes:
        """The page_0 or sub_page mode page header (SPC-5 clause 7.5); PS=0, nothing is saved."""
        if self.subpage == 0:
            return bytes((self.code, body_length))
        return bytes((SUBPAGE_FORMAT | self.code, self.subpage)) + body_length.to_bytes(2, "big")


def _nothing(settings: "DiskSettings") -> Fields:
    return {}


def _space_warning(settings: "DiskSettings") -> Fields:
    """A soft threshold that is reached when what is available falls to it."""
    return {
        "enabled": int(settings.space_warning_bytes > 0),
        "threshold_resource": AVAILABLE_LBA_MAPPING_RESOURCE,
        "threshold_count": settings.space_warning_bytes // THRESHOLD_SET_BYTES,
    }


def _cache_if_configured(settings: "DiskSettings") -> Fields:
    """WCE; an initiator cannot turn on a cache that the configuration forbids."""
    return {"wce": int(settings.write_cache)}


PAGES: tuple[ModePage, ...] = (
    ModePage(
        0x01, 0x00, "Read-Write Error Recovery", READ_WRITE_ERROR_RECOVERY, _nothing, _nothing
    ),
    ModePage(0x02, 0x00, "Disconnect-Reconnect", DISCONNECT_RECONNECT, _nothing, _nothing),
    ModePage(*CACHING_KEY, "Caching", CACHING, _cache_if_configured, _cache_if_configured),
    # GLTSD: log parameters are not saved. Queue algorithm modifier 1: SIMPLE commands of one
    # nexus run side by side, the initiator orders what must be ordered.
    ModePage(
        *CONTROL_KEY,
        "Control",
        CONTROL,
        lambda _: {"gltsd": 1, "queue_algorithm_modifier": 1},
        lambda _: {"d_sense": 1, "swp": 1, "tas": 1},
    ),
    # DEXCPT: the server predicts no failures of the host's disks.
    ModePage(
        0x1C,
        0x00,
        "Informational Exceptions Control",
        INFORMATIONAL_EXCEPTIONS_CONTROL,
        lambda _: {"dexcpt": 1},
        _nothing,
    ),
    ModePage(
        *PROVISIONING_KEY,
        "Logical Block Provisioning",
        LOGICAL_BLOCK_PROVISIONING,
        _space_warning,
        _nothing,
    ),
)
PAGES_BY_KEY: Mapping[PageKey, ModePage] = {page.key: page for page in PAGES}


def first_refused_bit(before: bytes, after: bytes, changeable: bytes) -> tuple[int, int] | None:
    """Byte and bit of the first difference that `changeable` does not allow, None if none."""
    for byte, (old, new, mask) in enumerate(zip(before, after, changeable, strict=True)):
        if refused := (old ^ new) & ~mask:
            return byte, refused.bit_length() - 1
    return None


class ModeState:
    """The mode parameters of one logical unit; the bodies are the page bytes after the header.

    The bits that other code asks for are plain attributes, renewed whenever a page changes:
    `descriptor_sense` (D_SENSE), `task_aborted_status` (TAS), `software_write_protect` (SWP) and
    `write_cache_enabled` (WCE).
    """

    __slots__ = (
        "changeable",
        "current",
        "defaults",
        "descriptor_sense",
        "software_write_protect",
        "task_aborted_status",
        "write_cache_enabled",
    )

    def __init__(self, settings: "DiskSettings") -> None:
        self.defaults = {page.key: page.build(page.defaults(settings)) for page in PAGES}
        self.changeable = {page.key: page.build(page.changeable(settings)) for page in PAGES}
        self.current = dict(self.defaults)
        self._renew()

    def reset(self) -> None:
        """Back to the default values, as after a logical unit reset (SAM-6, Logical unit reset)."""
        self.current = dict(self.defaults)
        self._renew()

    def check(self, key: PageKey, body: bytes, offset: int) -> None:
        """Refuse a page body, found at `offset` in a parameter list, that changes what it may not.

        Raises ScsiError with the field pointer of the first such bit (SPC-5, MODE SELECT).
        """
        refused = first_refused_bit(self.current[key], body, self.changeable[key])
        if refused is not None:
            byte, bit = refused
            raise invalid_parameter_field(offset + byte, bit)

    def commit(self, bodies: Mapping[PageKey, bytes]) -> bool:
        """Make checked bodies current; True if any value differs from before."""
        changed = any(self.current[key] != body for key, body in bodies.items())
        self.current.update(bodies)
        self._renew()
        return changed

    def _renew(self) -> None:
        control = CONTROL.parse(self.current[CONTROL_KEY])
        self.descriptor_sense = bool(control.d_sense)
        self.software_write_protect = bool(control.swp)
        self.task_aborted_status = bool(control.tas)
        self.write_cache_enabled = bool(CACHING.parse(self.current[CACHING_KEY]).wce)
