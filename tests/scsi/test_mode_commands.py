import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyiscsi_target.scsi.logical_unit import DiskSettings, LogicalUnit
from pyiscsi_target.scsi.mode_pages import PAGES_BY_KEY
from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.scsi.task import Nexus, Result, Status
from pyiscsi_target.storage.base import Capabilities
from tests.support.memory_disk import (
    data_of,
    field_of,
    make_disk,
    make_nexus,
    run,
    sense_of,
    store_of,
)

INVALID_CDB = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
INVALID_LIST = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_PARAMETER_LIST)
LENGTH_ERROR = (SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)

RECOVERY = "010a" + "00" * 10
DISCONNECT = "020e" + "00" * 14
CACHING = "081204" + "00" * 17
CONTROL = "0a0a0210" + "00" * 8
EXCEPTIONS = "1c0a08" + "00" * 9
PROVISIONING = "5c020014" + "00" * 13 + "01" + "00" * 6  # no threshold
ALL_PAGES = RECOVERY + DISCONNECT + CACHING + CONTROL + EXCEPTIONS

BLOCKS = 2048
DESCRIPTOR = "00000800 00 000200"
LONG_DESCRIPTOR = "0000000000000800 00000000 00000200"

CONTROL_WITH_D_SENSE = "0a0a0610" + "00" * 8
CONTROL_WITH_SWP = "0a0a021008" + "00" * 7
CACHING_WITHOUT_WCE = "0812" + "00" * 18


def sense_6(page: int, subpage: int = 0, *, dbd: bool = True, length: int = 255) -> bytes:
    return bytes((0x1A, dbd << 3, page, subpage, length, 0))


def sense_10(
    page: int, subpage: int = 0, *, dbd: bool = True, llbaa: bool = False, length: int = 0xFFFF
) -> bytes:
    return bytes((0x5A, dbd << 3 | llbaa << 4, page, subpage, 0, 0, 0)) + length.to_bytes(2) + b"\0"


def select_6(lu: LogicalUnit, nexus: Nexus, parameters: str, *, flags: int = 0x10) -> Result:
    raw = bytes.fromhex(parameters)
    return run(lu, nexus, bytes((0x15, flags, 0, 0, len(raw), 0)), [raw])


def select_10(lu: LogicalUnit, nexus: Nexus, parameters: str, *, flags: int = 0x10) -> Result:
    raw = bytes.fromhex(parameters)
    cdb = bytes((0x55, flags, 0, 0, 0, 0, 0)) + len(raw).to_bytes(2) + b"\0"
    return run(lu, nexus, cdb, [raw])


# --- MODE SENSE ---


@pytest.mark.parametrize(
    ("page", "subpage", "expected"),
    [
        (0x01, 0x00, RECOVERY),
        (0x02, 0x00, DISCONNECT),
        (0x08, 0x00, CACHING),
        (0x08, 0xFF, CACHING),
        (0x0A, 0x00, CONTROL),
        (0x1C, 0x00, EXCEPTIONS),
        (0x3F, 0x00, ALL_PAGES),
        (0x1C, 0x02, PROVISIONING),
        (0x1C, 0xFF, EXCEPTIONS + PROVISIONING),
        (0x3F, 0xFF, ALL_PAGES + PROVISIONING),
    ],
)
@pytest.mark.parametrize("page_control", [0, 2])
def test_current_and_default_values(
    page: int, subpage: int, expected: str, page_control: int
) -> None:
    lu, nexus, length = make_disk(), make_nexus(), len(expected) // 2
    page |= page_control << 6
    short = data_of(run(lu, nexus, sense_6(page, subpage)))
    assert short.hex() == f"{length + 3:02x}001000" + expected
    long = data_of(run(lu, nexus, sense_10(page, subpage)))
    assert long.hex() == f"{length + 6:04x}001000000000" + expected


def test_changeable_values_have_ones_where_mode_select_may_change() -> None:
    lu, nexus = make_disk(), make_nexus()
    assert data_of(run(lu, nexus, sense_6(0x48)))[4:].hex() == "081204" + "00" * 17
    assert data_of(run(lu, nexus, sense_6(0x4A)))[4:].hex() == "0a0a04000840" + "00" * 6
    assert data_of(run(lu, nexus, sense_6(0x7F)))[4:6] == b"\x01\x0a"


@pytest.mark.parametrize("cdb", [sense_6(0xCA), sense_10(0xFF)])
def test_there_are_no_saved_values(cdb: bytes) -> None:
    result = run(make_disk(), make_nexus(), cdb)
    assert sense_of(result) == (SenseKey.ILLEGAL_REQUEST, Asc.SAVING_PARAMETERS_NOT_SUPPORTED)


@pytest.mark.parametrize(
    ("page", "subpage", "field"),
    [
        (0x00, 0x00, (2, 5, True)),
        (0x19, 0x00, (2, 5, True)),
        (0x0A, 0x01, (3, 7, True)),
        (0x3F, 0x01, (3, 7, True)),
    ],
)
def test_pages_that_do_not_exist(page: int, subpage: int, field: tuple[int, int, bool]) -> None:
    lu, nexus = make_disk(), make_nexus()
    for cdb in (sense_6(page, subpage), sense_10(page, subpage)):
        result = run(lu, nexus, cdb)
        assert sense_of(result) == INVALID_CDB
        assert field_of(result) == field


def test_block_descriptors() -> None:
    lu, nexus = make_disk(), make_nexus()
    short = data_of(run(lu, nexus, sense_6(0x0A, dbd=False)))
    assert short[:12] == bytes.fromhex("17 00 10 08" + DESCRIPTOR)
    medium = data_of(run(lu, nexus, sense_10(0x0A, dbd=False)))
    assert medium[:16] == bytes.fromhex("001A 00 10 00 00 0008" + DESCRIPTOR)
    long = data_of(run(lu, nexus, sense_10(0x0A, dbd=False, llbaa=True)))
    assert long[:24] == bytes.fromhex("0022 00 10 01 00 0010" + LONG_DESCRIPTOR)


def test_a_capacity_beyond_32_bits_fits_the_long_descriptor_only() -> None:
    lu, nexus = make_disk(size_bytes=4 << 40), make_nexus()
    assert data_of(run(lu, nexus, sense_6(0x0A, dbd=False)))[4:8] == b"\xff" * 4
    long = data_of(run(lu, nexus, sense_10(0x0A, dbd=False, llbaa=True)))
    assert int.from_bytes(long[8:16], "big") == 1 << 33


@pytest.mark.parametrize("allocation_length", [0, 3, 4, 5, 30, 192])
def test_truncation_leaves_the_data_length_alone(allocation_length: int) -> None:
    lu, nexus = make_disk(), make_nexus()
    for sense in (sense_6, sense_10):
        whole = data_of(run(lu, nexus, sense(0x3F)))
        part = data_of(run(lu, nexus, sense(0x3F, length=allocation_length)))
        assert part == whole[:allocation_length]


@pytest.mark.parametrize(
    ("read_only", "capabilities"),
    [(True, Capabilities()), (False, Capabilities(read_only=True))],
)
def test_a_read_only_disk_is_write_protected(read_only: bool, capabilities: Capabilities) -> None:
    lu = make_disk(DiskSettings(read_only=read_only), capabilities=capabilities)
    assert data_of(run(lu, make_nexus(), sense_6(0x0A)))[2] == 0x90
    assert data_of(run(lu, make_nexus(), sense_10(0x0A)))[3] == 0x90


# --- MODE SELECT ---


def test_swp_shows_in_page_and_device_specific_parameter_and_can_be_cleared() -> None:
    lu, nexus = make_disk(), make_nexus()
    assert select_6(lu, nexus, "00000000" + CONTROL_WITH_SWP).status == Status.GOOD
    data = data_of(run(lu, nexus, sense_6(0x0A)))
    assert (data[2], data[4:].hex()) == (0x90, CONTROL_WITH_SWP)
    assert data_of(run(lu, nexus, sense_6(0x8A)))[4:].hex() == CONTROL
    assert select_10(lu, nexus, "00" * 8 + CONTROL).status == Status.GOOD
    assert not lu.mode.software_write_protect


def test_d_sense_chooses_the_format_of_sense_data() -> None:
    lu, nexus = make_disk(), make_nexus()
    assert run(lu, nexus, sense_6(0x00)).sense[0] == 0x70
    assert select_6(lu, nexus, "00000000" + CONTROL_WITH_D_SENSE).status == Status.GOOD
    assert run(lu, nexus, sense_6(0x00)).sense[0] == 0x72


def test_only_the_other_nexuses_hear_of_a_change_and_only_of_a_change() -> None:
    lu, mine, other = make_disk(), make_nexus(), make_nexus("iqn.2026-11.lab.example:node2")
    lu.attentions.attach(mine)
    lu.attentions.attach(other)
    select_6(lu, mine, "00000000" + CONTROL)
    assert not lu.attentions.pending
    select_6(lu, mine, "00000000" + CONTROL_WITH_D_SENSE)
    assert lu.attentions.take(mine) is None
    assert lu.attentions.take(other) is Asc.MODE_PARAMETERS_CHANGED


def test_turning_the_cache_off_flushes_it_first() -> None:
    lu, nexus = make_disk(), make_nexus()
    assert select_6(lu, nexus, "00000000" + CACHING_WITHOUT_WCE).status == Status.GOOD
    assert (lu.mode.write_cache_enabled, store_of(lu).flushes) == (False, 1)
    assert select_6(lu, nexus, "00000000" + CACHING_WITHOUT_WCE).status == Status.GOOD
    assert store_of(lu).flushes == 1
    assert select_6(lu, nexus, "00000000" + CACHING).status == Status.GOOD
    assert (lu.mode.write_cache_enabled, store_of(lu).flushes) == (True, 1)


def test_a_cache_that_cannot_be_flushed_fails_the_command_and_stays_off() -> None:
    lu = make_disk()
    store_of(lu).failing = True
    result = select_6(lu, make_nexus(), "00000000" + CACHING_WITHOUT_WCE)
    assert sense_of(result)[0] is SenseKey.MEDIUM_ERROR
    assert not lu.mode.write_cache_enabled


@pytest.mark.parametrize(
    "descriptor",
    [DESCRIPTOR, "00000000 00 000200", "ffffffff 00 000200"],
)
def test_block_descriptors_that_change_nothing(descriptor: str) -> None:
    lu, nexus = make_disk(), make_nexus()
    assert select_6(lu, nexus, "00000008" + descriptor + CONTROL).status == Status.GOOD
    header = "00 00 00 00 00 00 00 08"
    assert select_10(lu, nexus, header + descriptor + CONTROL).status == Status.GOOD


def test_a_long_block_descriptor_that_changes_nothing() -> None:
    parameters = "00 00 00 00 01 00 00 10" + LONG_DESCRIPTOR + CONTROL
    assert select_10(make_disk(), make_nexus(), parameters).status == Status.GOOD


@pytest.mark.parametrize("parameters", ["", "00000000", "00000008" + DESCRIPTOR])
def test_lists_without_pages_are_no_error(parameters: str) -> None:
    result = select_6(make_disk(), make_nexus(), parameters)
    assert (result.status, result.data_out_length) == (
        Status.GOOD,
        len(bytes.fromhex(parameters)),
    )


def test_the_write_protect_bit_of_the_header_is_ignored() -> None:
    assert select_6(make_disk(), make_nexus(), "170090 00" + CONTROL).status == Status.GOOD


@pytest.mark.parametrize(
    ("flags", "bit"), [(0x11, 0), (0x01, 0), (0x00, 4), (0x12, 1)], ids=["SP", "SP", "PF", "RTD"]
)
def test_what_the_cdb_may_not_ask_for(flags: int, bit: int) -> None:
    result = select_6(make_disk(), make_nexus(), "00000000" + CONTROL, flags=flags)
    assert sense_of(result) == INVALID_CDB
    assert field_of(result) == (1, bit, True)


@pytest.mark.parametrize(
    ("parameters", "byte", "bit"),
    [
        ("00010000", 1, 7),
        ("00000004" + DESCRIPTOR, 3, 7),
        ("00000010" + LONG_DESCRIPTOR, 3, 7),
        ("00000008 00000801 00 000200", 4, 7),
        ("00000008 00000800 00 001000", 9, 7),
        ("00000000 190a" + "00" * 10, 4, 5),
        ("00000000 4a01001c" + "00" * 28, 4, 5),
        ("00000000 4a00000a" + "00" * 10, 4, 5),
        ("00000000 0a09" + "00" * 9, 5, 7),
        ("00000000" + CONTROL + "0a0b" + "00" * 11, 17, 7),
        ("00000000 0a0a2210" + "00" * 8, 6, 5),
        ("00000000 0a0a0220" + "00" * 8, 7, 5),
        ("00000008" + DESCRIPTOR + CONTROL + "010a80" + "00" * 9, 26, 7),
    ],
)
def test_field_pointers_into_the_parameter_list(parameters: str, byte: int, bit: int) -> None:
    result = select_6(make_disk(), make_nexus(), parameters)
    assert sense_of(result) == INVALID_LIST
    assert field_of(result) == (byte, bit, False)


def test_field_pointers_into_the_long_header() -> None:
    lu, nexus = make_disk(), make_nexus()
    medium_type = select_10(lu, nexus, "00 00 80 00 00 00 00 00")
    assert field_of(medium_type) == (2, 7, False)
    short_for_long = select_10(lu, nexus, "00 00 00 00 01 00 00 08" + DESCRIPTOR)
    assert field_of(short_for_long) == (6, 7, False)
    block_size = select_10(
        lu, nexus, "00 00 00 00 01 00 00 10" + "0000000000000800 00000000 00001000"
    )
    assert field_of(block_size) == (20, 7, False)


@pytest.mark.parametrize(
    "cut",
    [1, 3, 5, 11, 13, 14, 23],
    ids=["header", "header", "descriptor", "descriptor", "page header", "page", "page"],
)
def test_truncated_lists(cut: int) -> None:
    lu = make_disk()
    whole = bytes.fromhex("00000008" + DESCRIPTOR + CONTROL_WITH_SWP)
    result = select_6(lu, make_nexus(), whole[:cut].hex())
    assert sense_of(result) == LENGTH_ERROR
    assert lu.mode.current == lu.mode.defaults


def test_a_list_shorter_than_the_cdb_says_is_refused() -> None:
    parameters = bytes.fromhex("00000000" + CONTROL_WITH_SWP)
    result = run(make_disk(), make_nexus(), bytes((0x15, 0x10, 0, 0, 17, 0)), [parameters])
    assert sense_of(result) == LENGTH_ERROR


def test_nothing_changes_unless_all_pages_are_right() -> None:
    lu = make_disk()
    parameters = "00000000" + CONTROL_WITH_SWP + "0812" + "01" + "00" * 17
    assert sense_of(select_6(lu, make_nexus(), parameters)) == INVALID_LIST
    assert lu.mode.current == lu.mode.defaults


def test_what_mode_sense_gave_can_be_sent_back() -> None:
    lu, nexus = make_disk(), make_nexus()
    short = data_of(run(lu, nexus, sense_6(0x3F, dbd=False)))
    assert select_6(lu, nexus, short.hex()).status == Status.GOOD
    long = data_of(run(lu, nexus, sense_10(0x3F, dbd=False, llbaa=True)))
    assert select_10(lu, nexus, long.hex()).status == Status.GOOD


PAGE = st.sampled_from([bytes.fromhex(page) for page in (RECOVERY, CACHING, CONTROL, EXCEPTIONS)])
NEARLY_PAGES = st.lists(st.one_of(PAGE, st.binary(max_size=24)), max_size=4).map(b"".join)


@given(
    header=st.one_of(
        st.just(bytes(4)), st.just(bytes.fromhex("00000008" + DESCRIPTOR)), st.binary()
    ),
    pages=NEARLY_PAGES,
    flip=st.integers(0, 2000),
    long=st.booleans(),
)
@example(header=bytes(4), pages=bytes.fromhex(CONTROL), flip=2000, long=False)
def test_whatever_arrives_is_taken_whole_or_refused_whole(
    header: bytes, pages: bytes, flip: int, long: bool
) -> None:
    lu, nexus = make_disk(), make_nexus()
    parameters = bytearray(header + pages)[:255]
    if flip < 8 * len(parameters):
        parameters[flip // 8] ^= 1 << flip % 8
    result = (select_10 if long else select_6)(lu, nexus, parameters.hex())
    if result.status == Status.GOOD:
        assert all(len(body) == len(lu.mode.defaults[key]) for key, body in lu.mode.current.items())
        return
    assert sense_of(result) in (INVALID_LIST, LENGTH_ERROR)
    assert lu.mode.current == lu.mode.defaults


def test_every_page_of_the_table_can_be_read_by_itself() -> None:
    lu, nexus = make_disk(), make_nexus()
    for code, subpage in PAGES_BY_KEY:
        assert data_of(run(lu, nexus, sense_6(code, subpage)))[4] & 0x3F == code
