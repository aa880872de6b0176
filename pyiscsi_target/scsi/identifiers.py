"""Who a logical unit is: vendor, product, serial number and its world wide names.

Everything derives from one 64-bit random seed, so the state store keeps the seed (and what the
operator overrides) and the identity never changes. This module knows no page and no command.

No IEEE organisation stands behind this program, hence the choice of names: NAA 6h, 5h and 2h carry
an IEEE company identifier and cannot be made up. NAA 3h, locally assigned (SPC-5 clause 7.7.6.6),
is eight bytes whose last 60 bits belong to whoever administers the device. The EUI-64 has the U/L
bit set and the I/G bit clear, which puts it into IEEE 802's locally administered space, where no
company identifier is claimed.
"""

from dataclasses import dataclass

VENDOR_LENGTH = 8
PRODUCT_LENGTH = 16
REVISION_LENGTH = 4
# The T10 designator holds vendor, product and serial in at most 255 bytes; initiators keep less.
SERIAL_MAXIMUM_LENGTH = 64

DEFAULT_VENDOR = "PYISCSI"
DEFAULT_PRODUCT = "Virtual Disk"
DEFAULT_REVISION = "0001"

SEED_BITS = 64
_NAA_LOCALLY_ASSIGNED = 0x3
_LOCALLY_ADMINISTERED = 0x02 << 56
_GROUP = 0x01 << 56


def check_ascii(name: str, text: str, maximum_length: int) -> None:
    """ASCII data fields hold 20h to 7Eh only (SPC-5 clause 4). Raises ValueError."""
    if len(text) > maximum_length:
        raise ValueError(f"{name} has {len(text)} characters, at most {maximum_length} fit")
    if not (text.isascii() and text.isprintable()):
        raise ValueError(f"{name} may hold printable ASCII only")


def naa_from_seed(seed: int) -> bytes:
    """An NAA locally assigned designator, eight bytes (SPC-5 clause 7.7.6.6)."""
    return (_NAA_LOCALLY_ASSIGNED << 60 | seed & ((1 << 60) - 1)).to_bytes(8, "big")


def eui64_from_seed(seed: int) -> bytes:
    """A locally administered EUI-64, eight bytes (SPC-5, EUI-64 designator format)."""
    return ((seed | _LOCALLY_ADMINISTERED) & ~_GROUP).to_bytes(8, "big")


@dataclass(frozen=True, slots=True)
class Identity:
    """What INQUIRY and the vital product data say about one logical unit, for ever.

    `vendor`, `product`, `revision` and `serial` are without padding; `naa` and `eui64` are binary,
    eight bytes each. Raises ValueError where a field does not fit its page.
    """

    vendor: str
    product: str
    revision: str
    serial: str
    naa: bytes
    eui64: bytes

    def __post_init__(self) -> None:
        check_ascii("vendor", self.vendor, VENDOR_LENGTH)
        check_ascii("product", self.product, PRODUCT_LENGTH)
        check_ascii("revision", self.revision, REVISION_LENGTH)
        check_ascii("serial", self.serial, SERIAL_MAXIMUM_LENGTH)
        if not self.serial.strip():
            raise ValueError("serial is empty")
        if len(self.naa) != 8 or len(self.eui64) != 8:
            raise ValueError("naa and eui64 have eight bytes each")

    @classmethod
    def from_seed(
        cls,
        seed: int,
        *,
        vendor: str = DEFAULT_VENDOR,
        product: str = DEFAULT_PRODUCT,
        revision: str = DEFAULT_REVISION,
        serial: str | None = None,
    ) -> "Identity":
        """The identity that a stored random 64-bit `seed` stands for."""
        if not 0 <= seed < 1 << SEED_BITS:
            raise ValueError(f"the seed must have at most {SEED_BITS} bits")
        return cls(
            vendor,
            product,
            revision,
            serial or f"{seed:016X}",
            naa_from_seed(seed),
            eui64_from_seed(seed),
        )

    @property
    def vendor_field(self) -> bytes:
        """T10 VENDOR IDENTIFICATION: left-aligned, padded with spaces."""
        return self.vendor.ljust(VENDOR_LENGTH).encode("ascii")

    @property
    def product_field(self) -> bytes:
        """PRODUCT IDENTIFICATION: left-aligned, padded with spaces."""
        return self.product.ljust(PRODUCT_LENGTH).encode("ascii")

    @property
    def revision_field(self) -> bytes:
        """PRODUCT REVISION LEVEL: left-aligned, padded with spaces."""
        return self.revision.ljust(REVISION_LENGTH).encode("ascii")

    @property
    def serial_field(self) -> bytes:
        """PRODUCT SERIAL NUMBER (SPC-5, Unit Serial Number VPD page)."""
        return self.serial.encode("ascii")

    @property
    def logical_unit_name(self) -> str:
        """The SCSI name string of the logical unit: `naa.` and the 16 hex digits of the NAA."""
        return f"naa.{self.naa.hex().upper()}"


ANONYMOUS = Identity.from_seed(0)
"""Fills the texts of INQUIRY data for what has no identity: absent and well-known units."""
