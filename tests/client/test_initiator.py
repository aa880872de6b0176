"""The initiator's own side: its identity and what it offers."""

import pytest

from pyiscsi_target.client import Credentials, Initiator, Limits

ISID = bytes.fromhex("400001370000")


def test_without_an_isid_every_initiator_is_another_port() -> None:
    first, second = Initiator(), Initiator()
    assert first.isid != second.isid
    assert first.isid[0] >> 6 == 0b10  # T: random (RFC 7143 section 11.12.5)


def test_its_port_name() -> None:
    assert Initiator("iqn.2026-11.x:a", ISID).port_name == "iqn.2026-11.x:a,i,0x400001370000"


@pytest.mark.parametrize(
    ("initiator", "header", "data"),
    [
        (Initiator(), "None", "None"),
        (Initiator(header_digest=True), "CRC32C", "None"),
        (Initiator(data_digest=True), "None", "CRC32C"),
        (Initiator(limits=Limits(data_digest="CRC32C,None")), "CRC32C,None", "CRC32C,None"),
    ],
)
def test_digests(initiator: Initiator, header: str, data: str) -> None:
    limits = initiator.settings(None).limits
    assert (limits.header_digest, limits.data_digest) == (header, data)


def test_settings() -> None:
    credentials = Credentials("a", b"b")
    settings = Initiator("iqn.2026-11.x:a", ISID, credentials).settings("iqn.2026-11.x:t")
    assert (settings.initiator_name, settings.target_name) == ("iqn.2026-11.x:a", "iqn.2026-11.x:t")
    assert (settings.isid, settings.credentials) == (ISID, credentials)


def test_a_transport_id_names_the_port() -> None:
    """SPC-5 clause 7.6.4.6: format 01b, protocol 5h, name with ISID, zeroes to a multiple of 4."""
    name = b"iqn.2026-11.x:a,i,0x" + ISID.hex().encode()
    assert Initiator("iqn.2026-11.x:a", ISID).transport_id == b"\x45\0\0\x24" + name.ljust(
        36, b"\0"
    )


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [({"isid": bytes(5)}, "six|6 bytes, not 5"), ({"queue_depth": 0}, "queue_depth is below 1")],
)
def test_what_is_wrong(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Initiator(**fields)  # type: ignore[arg-type]


def test_no_secret_shows() -> None:
    assert "hidden" not in repr(Initiator(credentials=Credentials("a", b"hidden", "b", b"hidden")))
