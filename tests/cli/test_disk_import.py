"""`disk import`: the stanza that it writes is served, and the rest of the config stays."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyiscsi_target.cli import main
from pyiscsi_target.server.config import load_config
from tests.support.live import MIB, config_of, serving
from tests.support.server import TARGET

CONFIG = f"""# My lab.
[server]
portals = ["127.0.0.1:0"]  # nobody else

[disks.quorum]
path = "quorum.img"
size = "1 MiB"

[targets."{TARGET}"]
luns = {{ 0 = "quorum" }}  # more to come
initiators = ["*"]
"""


def disk(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["disk", *map(str, arguments)])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def image(path: Path, *options: str) -> Path:
    assert disk("create", path, "--size", "8M", *options).exit_code == 0
    return path


def assert_kept(config: Path) -> None:
    """What the owner wrote is there."""
    text = config.read_text()
    assert "# more to come" in text
    for line in CONFIG.splitlines():
        assert line in text or line.startswith("luns")


def test_nobody_else_reads_secrets_meanwhile(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.chmod(0o640)
    steps: list[str] = []
    real_open, real_chmod = os.open, Path.chmod

    def opened(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            steps.append(f"{mode:o}")
        return real_open(path, flags, mode)

    def changed(path: Path, mode: int) -> None:
        steps.append(f"{mode:o} with {path.stat().st_size} bytes")
        real_chmod(path, mode)

    path = image(tmp_path / "data.img")
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(Path, "chmod", changed)
    assert disk("import", path, "--config", config).exit_code == 0
    assert steps == ["600", "640 with 0 bytes"]


async def test_an_image_is_served_afterwards(config: Path, tmp_path: Path) -> None:
    path = image(tmp_path / "SQL data (1).vhdx", "--sector-size", "4096")
    result = disk("import", path, "--config", config)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{config}: disk SQL-data-1, 8 MiB, LUN 1 of {TARGET}\n"
    assert_kept(config)
    loaded = load_config(config)
    assert loaded.disks["SQL-data-1"].path == str(path)
    async with serving(loaded, tmp_path) as live:
        peer = await live.log_in()
        done = await peer.command(bytes.fromhex("25000000000000000000"), read_bytes=8, lun=1)
        while done.status:
            done = await peer.command(bytes.fromhex("25000000000000000000"), read_bytes=8, lun=1)
        assert done.data == (8 * MIB // 4096 - 1).to_bytes(4) + (4096).to_bytes(4)


def test_a_choice_of_names(config: Path, tmp_path: Path) -> None:
    path = image(tmp_path / "a.img")
    result = disk(
        "import", path, "--config", config, "--name", "data", "--target", TARGET, "--lun", 7
    )
    assert result.exit_code == 0
    assert load_config(config).targets[TARGET].luns == {0: "quorum", 7: "data"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "quorum"], "disks.quorum: is there already"),
        (["--lun", "0"], "is disk 'quorum' already"),
        (["--target", "iqn.x"], "there is no such target; there are: iqn."),
        (["--name", "a b"], "nothing was changed"),
    ],
)
def test_what_cannot_be(config: Path, tmp_path: Path, options: list[str], message: str) -> None:
    path = image(tmp_path / "a.img")
    result = disk("import", path, "--config", config, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert config.read_text() == CONFIG


def test_an_image_that_is_none(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.vhdx"
    path.write_bytes(bytes(MIB))
    result = disk("import", path, "--config", config)
    assert result.exit_code == 1
    assert str(path) in result.stderr
    assert config.read_text() == CONFIG


def test_a_file_that_is_in_the_config_already(config: Path, tmp_path: Path) -> None:
    path = image(tmp_path / "quorum.img")
    result = disk("import", path, "--config", config, "--name", "again")
    assert result.exit_code == 2
    assert "is the file of disk" in result.stderr
    assert config.read_text() == CONFIG


def test_a_config_without_targets(tmp_path: Path) -> None:
    config_of(tmp_path, disks={}, targets={})
    result = disk("import", image(tmp_path / "a.img"), "--config", tmp_path / "config.toml")
    assert "no LUN yet" in result.stdout
