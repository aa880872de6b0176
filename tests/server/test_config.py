"""Whole files: what they come to, and that every mistake is told at once with its line."""

from pathlib import Path

import pytest

from pyiscsi_target.server.config import Config, ConfigError, load_config, warnings_of
from pyiscsi_target.server.config_values import Endpoint

TARGET = "iqn.2026-11.lab.example:cluster"

WHOLE = f"""
[server]
portals = ["127.0.0.1:0", "[::1]:3260"]
metrics = "127.0.0.1:9860"
discovery = {{ chap = {{ user = "d", secret_file = "secrets/discovery" }} }}

[disks.quorum]
path = "disks/quorum.img"
size = "1 GiB"

[disks.scratch]
path = "ram:"
size = "16 MiB"
block_size = 4096

[targets."{TARGET.upper()}"]
luns = {{ 0 = "quorum", 1 = "scratch" }}
initiators = [
    "iqn.1991-05.com.microsoft:Node1.lab",
    {{ address = "192.0.2.0/24", luns = {{ 0 = "scratch" }} }},
]
chap = {{ user = "cluster", secret_file = "secrets/one-way" }}
mutual_chap = {{ user = "target", secret_file = "secrets/mutual" }}
header_digest = "required"
limits = {{ max_burst_length = "2 MiB" }}
"""


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    directory = tmp_path / "secrets"
    directory.mkdir()
    for name in ("one-way", "mutual", "discovery"):
        (directory / name).write_text(f"secret-{name:>8}\n")
        (directory / name).chmod(0o600)
    return directory


def load(directory: Path, text: str) -> Config:
    path = directory / "config.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def mistakes(directory: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load(directory, text)
    prefix = f"{directory / 'config.toml'}:"
    lines = str(error.value).splitlines()
    assert all(line.startswith(prefix) for line in lines)
    return [line.removeprefix(prefix) for line in lines]


@pytest.mark.usefixtures("secrets")
def test_a_whole_file(tmp_path: Path) -> None:
    config = load(tmp_path, WHOLE)
    assert config.server.portals == (Endpoint("127.0.0.1", 0), Endpoint("::1", 3260))
    assert config.server.state_dir == tmp_path / "state"
    assert config.server.discovery.chap is not None
    assert config.disks["quorum"].path == str(tmp_path / "disks/quorum.img")
    assert config.disks["quorum"].size_bytes == 2**30
    assert config.disks["scratch"].path == "ram:"
    target = config.targets[TARGET]
    assert target.luns == {0: "quorum", 1: "scratch"}
    assert target.initiators[0].name == "iqn.1991-05.com.microsoft:node1.lab"
    assert target.initiators[1].luns == {0: "scratch"}
    assert target.chap is not None
    assert target.chap.secret.reveal() == b"secret- one-way"
    assert target.limits.max_burst_length == 2 * 2**20
    assert warnings_of(config, tmp_path / "config.toml") == []


@pytest.mark.usefixtures("secrets")
def test_no_secret_shows_in_a_config(tmp_path: Path) -> None:
    config = load(tmp_path, WHOLE)
    assert "secret-" not in repr(config) + str(config) + repr(config.model_dump())


def test_an_empty_file_is_a_config_of_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, "")
    assert config.server.portals == (Endpoint("0.0.0.0", 3260), Endpoint("::", 3260))
    assert config.server.state_dir == tmp_path / "state"
    assert config.targets == {}


MISTAKES = """\
bogus = 1
[server]
portals = ["127.0.0.1:0", "::1:3260"]
state_dirr = "x"
drain_timeout_s = true
[disks.quorum]
path = "quorum.img"
size = "1 Gibi"
block_size = 1024
[disks.data]
path = "./quorum.img"
size = 1000
serial = "A"
vender = "x"
[disks.memory]
path = "ram:"
serial = "A"
[disks."bad name"]
[targets.cluster]
luns = { 0 = "quorun", 256 = "data", 01 = "memory" }
initiators = [
    "node1",
    { nam = "x" },
    {},
    { name = "iqn.2026-11.lab.example:a", luns = { 0 = "data", 1 = "data" } },
]
header_digest = "on"
[targets.cluster.limits]
first_burst_length = "2 MiB"
max_outstanding_r2t = 0
[targets."iqn.2026-11.lab.example:a"]
[targets."IQN.2026-11.lab.example:a"]
"""


def test_every_mistake_in_one_go(tmp_path: Path) -> None:
    assert mistakes(tmp_path, MISTAKES) == [
        "1: bogus: is not a known key; known here: server, disks, targets",
        '3: server.portals[1]: has an IPv6 address without brackets ("::1:3260"); '
        "write it like '[::1]:3260'",
        "4: server.state_dirr: is not a known key; did you mean 'state_dir'?",
        "5: server.drain_timeout_s: must be a number (true)",
        '8: disks.quorum.size: is not a size ("1 Gibi"); '
        "write a number of bytes or text like '10 GiB'",
        "9: disks.quorum.block_size: is not a choice (1024); use 512 or 4096",
        "11: disks.data.path: is the file of disk 'quorum' too; give each disk a file of its own",
        "12: disks.data.size: is not a multiple of the block size 512 (1000); use 1024",
        "14: disks.data.vender: is not a known key; did you mean 'vendor'?",
        "15: disks.memory.size: is missing, and a disk in memory needs it; add it, like '1 GiB'",
        "17: disks.memory.serial: is the serial number of disk 'data' too; "
        "hosts would take them for one disk",
        "18: disks.\"bad name\": is not a name; use up to 64 letters, digits, '.', '_' and '-'",
        "18: disks.\"bad name\".path: is missing; add it, like path = 'disks/data.img'",
        "19: targets.cluster: is not an iSCSI name; begin with iqn., eui. or naa., "
        "like 'iqn.2026-11.lab.example:host'",
        "20: targets.cluster.luns.0: is not a disk (\"quorun\"); did you mean 'quorum'?",
        "20: targets.cluster.luns.256: is too high for a LUN; use a number from 0 to 255",
        "20: targets.cluster.luns.01: is not a LUN; use a number from 0 to 255",
        "22: targets.cluster.initiators[0]: is neither an initiator name, a pattern nor an "
        "address (\"node1\"); write 'iqn.2026-11.lab.example:host', 'iqn.*', '*' or '192.0.2.0/24'",
        "23: targets.cluster.initiators[1].nam: is not a known key; did you mean 'name'?",
        "24: targets.cluster.initiators[2]: says not whom it admits; add name or address",
        "25: targets.cluster.initiators[3].luns: gives disk 'data' two LUNs, 0 and 1; "
        "keep one of them",
        '27: targets.cluster.header_digest: is not a choice ("on"); '
        "use 'off', 'offered' or 'required'",
        "29: targets.cluster.limits.first_burst_length: is more than max_burst_length "
        "(\"2 MiB\"); use at most '1 MiB'",
        "30: targets.cluster.limits.max_outstanding_r2t: is too low (0); use at least 1",
        '32: targets."IQN.2026-11.lab.example:a": is the same name as '
        "'iqn.2026-11.lab.example:a'; give each target its own",
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ('a = 1\nb = "\n', "2: is not TOML: Illegal character '\\n' (line 2, column 6)"),
        ("a = 1\na = 2\n", "2: is not TOML: Cannot overwrite a value (line 2, column 6)"),
        (
            "\n[server",
            "2: is not TOML: Expected ']' at the end of a table declaration (end of document)",
        ),
    ],
)
def test_a_syntax_error_has_its_line(tmp_path: Path, text: str, mistake: str) -> None:
    assert mistakes(tmp_path, text) == [mistake]


def test_sections_of_the_wrong_kind(tmp_path: Path) -> None:
    assert mistakes(tmp_path, 'server = 1\ndisks = ["x"]\n[targets]\nx = []\n') == [
        "1: server: must be a table (1); write { key = value } or a [section]",
        "2: disks: must be a table; write { key = value } or a [section]",
        "4: targets.x: is not an iSCSI name; begin with iqn., eui. or naa., "
        "like 'iqn.2026-11.lab.example:host'",
        "4: targets.x: must be a table; write { key = value } or a [section]",
    ]


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"#" * (4 * 2**20 + 1)])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert len(error.value.problems) == 1
    assert str(error.value).startswith(f"{path}: ")


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    text = '\ufeff[server]\r\n\r\nstate_dirr = "x"\r\n'
    assert mistakes(tmp_path, text)[0].startswith("3: server.state_dirr")


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize(
    ("target", "mistake"),
    [
        (
            'chap = { user = "x", secret = "not-to-be-shown" }',
            ".chap.secret: is not a known key; did you mean 'secret_file'?",
        ),
        ('chap = "user:not-to-be-shown"', ".chap: must be a table"),
        ('chap = { user = "x", secret_file = ["not-to-be-shown"] }', "must be text in quotes"),
        (
            'mutual_chap = { user = "x", secret_file = "secrets/mutual" }',
            ".mutual_chap: stands alone",
        ),
        (
            'chap = { user = "x", secret_file = "secrets/mutual" }\n'
            'mutual_chap = { user = "y", secret_file = "secrets/mutual" }',
            ".mutual_chap: has the secret of a chap; use different secrets",
        ),
        (
            'chap = { user = "", secret_file = "secrets/none" }',
            "secrets/none: No such file or directory; create it",
        ),
    ],
)
def test_mistakes_in_chap_never_show_a_value(tmp_path: Path, target: str, mistake: str) -> None:
    found = "\n".join(mistakes(tmp_path, f'[targets."{TARGET}"]\n{target}\n'))
    assert mistake in found
    assert "not-to-be-shown" not in found


@pytest.mark.usefixtures("secrets")
def test_a_secret_serves_one_direction_in_the_whole_file(tmp_path: Path) -> None:
    text = WHOLE + (
        '[targets."iqn.2026-11.lab.example:other"]\n'
        'chap = { user = "x", secret_file = "secrets/mutual" }\n'
    )
    assert ["has the secret of a mutual_chap" in line for line in mistakes(tmp_path, text)] == [
        True
    ]


def test_links_to_one_file_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "link.img").symlink_to("a.img")
    text = '[disks.a]\npath = "a.img"\n[disks.b]\npath = "link.img"\n'
    assert ["is the file of disk 'a' too" in line for line in mistakes(tmp_path, text)] == [True]


def test_memory_disks_share_nothing(tmp_path: Path) -> None:
    text = '[disks.a]\npath = "ram:"\nsize = 512\n[disks.b]\npath = "ram:"\nsize = 512\n'
    assert len(load(tmp_path, text).disks) == 2
