import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.scsi.identifiers import Identity, eui64_from_seed, naa_from_seed

SEEDS = st.integers(0, (1 << 64) - 1)


@given(SEEDS)
def test_names_are_locally_assigned_whatever_the_seed(seed: int) -> None:
    identity = Identity.from_seed(seed)
    assert identity.naa[0] >> 4 == 3
    assert identity.eui64[0] & 0x03 == 0x02
    assert identity.logical_unit_name == "naa." + identity.naa.hex().upper()
    assert Identity.from_seed(seed) == identity


@given(SEEDS, SEEDS)
def test_names_differ_where_the_lower_bits_of_the_seeds_do(one: int, other: int) -> None:
    mask = (1 << 56) - 1
    assert (one & mask == other & mask) or naa_from_seed(one) != naa_from_seed(other)
    assert (one & mask == other & mask) or eui64_from_seed(one) != eui64_from_seed(other)


def test_serial_and_texts_can_be_overridden_without_touching_the_names() -> None:
    plain = Identity.from_seed(7)
    named = Identity.from_seed(7, vendor="ACME", product="Quorum", serial="Q-1")
    assert plain.serial == "0000000000000007"
    assert (named.vendor_field, named.product_field) == (b"ACME    ", b"Quorum          ")
    assert named.serial_field == b"Q-1"
    assert (named.naa, named.eui64) == (plain.naa, plain.eui64)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vendor", "NINECHARS"),
        ("product", "seventeen letters"),
        ("revision", "12345"),
        ("serial", "x" * 65),
        ("serial", " "),
        ("vendor", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
        ("product", "tab\there"),
        ("naa", b"\x30"),
        ("eui64", b""),
    ],
)
def test_what_does_not_fit_its_page_is_refused(field: str, value: str | bytes) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(Identity.from_seed(1), **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_has_64_bits(seed: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        Identity.from_seed(seed)
