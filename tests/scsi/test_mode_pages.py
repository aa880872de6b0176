import pytest

from pyiscsi_target.scsi.logical_unit import DiskSettings
from pyiscsi_target.scsi.mode_pages import (
    CACHING_KEY,
    CONTROL_KEY,
    PAGES,
    PROVISIONING_KEY,
    SUBPAGE_FORMAT,
    ModePage,
    ModeState,
)
from pyiscsi_target.scsi.sense import ScsiError

# SBC-4 and SPC-5: the PAGE LENGTH of each page
LENGTHS = {
    (0x01, 0x00): 0x0A,
    (0x02, 0x00): 0x0E,
    (0x08, 0x00): 0x12,
    (0x0A, 0x00): 0x0A,
    (0x1C, 0x00): 0x0A,
    (0x1C, 0x02): 0x14,
}

D_SENSE = bytes.fromhex("06 10 00 00 0000 0000 0000")
SWP_AND_TAS = bytes.fromhex("02 10 08 40 0000 0000 0000")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_lengths(page: ModePage) -> None:
    state = ModeState(DiskSettings())
    length = LENGTHS[page.key]
    assert len(state.current[page.key]) == len(state.changeable[page.key]) == length
    short = bytes((page.code, length))
    long = bytes((page.code | SUBPAGE_FORMAT, page.subpage, 0, length))
    assert page.header(length) == (long if page.subpage else short)


def test_the_soft_threshold() -> None:
    """SBC-4: enabled, soft, decreasing, of the available resources, in threshold sets."""
    body = ModeState(DiskSettings(space_warning_bytes=5 << 30)).current[PROVISIONING_KEY]
    assert body == bytes(12) + bytes.fromhex("80 01 0000 00001400")


def test_pages_are_in_ascending_order() -> None:
    keys = [page.key for page in PAGES]
    assert keys == sorted(set(keys))


def test_a_subpage_has_the_long_header() -> None:
    row = ModePage(0x0A, 0x01, "Control Extension", None, lambda _: {}, lambda _: {})
    assert row.header(0x1C) == bytes.fromhex("4A 01 00 1C")


@pytest.mark.parametrize("write_cache", [False, True])
def test_the_write_cache_setting_is_the_default_of_wce_and_allows_it(write_cache: bool) -> None:
    state = ModeState(DiskSettings(write_cache=write_cache))
    assert state.write_cache_enabled is write_cache
    assert state.defaults[CACHING_KEY][0] == (0x04 if write_cache else 0)
    assert state.changeable[CACHING_KEY][0] == (0x04 if write_cache else 0)


def test_committed_bits_show_as_attributes_until_reset() -> None:
    state = ModeState(DiskSettings())
    assert not (state.descriptor_sense)
    assert not (state.software_write_protect)
    assert state.commit({CONTROL_KEY: D_SENSE})
    assert state.descriptor_sense
    assert state.commit({CONTROL_KEY: SWP_AND_TAS})
    assert not state.descriptor_sense
    assert (state.software_write_protect, state.task_aborted_status) == (True, True)
    assert state.commit({CACHING_KEY: bytes(18)})
    assert not state.write_cache_enabled
    state.reset()
    assert state.current == state.defaults
    assert not (state.software_write_protect)
    assert not (state.task_aborted_status)
    assert state.write_cache_enabled


def test_committing_what_is_already_so_is_no_change() -> None:
    state = ModeState(DiskSettings())
    assert not state.commit(dict(state.current))
    assert not state.commit({})


def test_only_changeable_bits_may_differ() -> None:
    state = ModeState(DiskSettings())
    for key, body in state.current.items():
        for bit in range(8 * len(body)):
            changed = bytearray(body)
            changed[bit // 8] ^= 1 << bit % 8
            if state.changeable[key][bit // 8] >> bit % 8 & 1:
                state.check(key, bytes(changed), 6)
                continue
            with pytest.raises(ScsiError) as refused:
                state.check(key, bytes(changed), 6)
            pointer = refused.value.field
            assert pointer is not None
            assert (pointer.byte, pointer.bit, pointer.in_cdb) == (6 + bit // 8, bit % 8, False)
