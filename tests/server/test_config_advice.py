"""What is allowed and doubtful, each doubt alone."""

import os
import re
from pathlib import Path

import pytest

from pyiscsi_target.server.config import load_config, warnings_of

TARGET = '[targets."iqn.2026-11.lab.example:X"]\n'
DISK = '[disks.a]\npath = "ram:"\nsize = 512\n'
SOUND = DISK + TARGET + 'luns = { 0 = "a" }\ninitiators = ["*"]\n'


def warnings(directory: Path, text: str) -> list[str]:
    path = directory / "config.toml"
    path.write_text(text)
    return [
        f"{warning.line}: {warning.key}: {warning.message}"
        for warning in warnings_of(load_config(path), path)
    ]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("", "None: : no targets"),
        (
            DISK + TARGET + 'luns = { 0 = "a" }\n',
            '4: targets."iqn.2026-11.lab.example:X": admits nobody',
        ),
        (SOUND.replace("0 =", "1 ="), "5: targets.*luns: has no LUN 0"),
        (
            SOUND.replace("*", "iqn.2026-11.lab.example:a_b"),
            r"6: targets.*initiators\[0\]: .*allow: _;",
        ),
        (SOUND + '[disks.b]\npath = "b"\n', "7: disks.b: is on no target"),
        (TARGET + 'initiators = ["*"]\n', "1: targets.*luns: is empty"),
        (
            SOUND.replace('["*"]', '["*", { name = "*", luns = {} }]'),
            r"6: targets.*initiators\[1\].luns: is empty",
        ),
    ],
)
def test_one_doubt(tmp_path: Path, text: str, warning: str) -> None:
    found = warnings(tmp_path, text)
    assert len(found) == 1
    assert re.match(warning, found[0]), found


def test_a_sound_config_raises_none(tmp_path: Path) -> None:
    assert warnings(tmp_path, SOUND) == []


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
@pytest.mark.parametrize(
    ("mode", "secret", "doubts"),
    [
        (0o600, "12-to-16-good", []),
        (0o640, "12-to-16-good", ["can be read by others (mode 0640); run chmod 600"]),
        (0o600, "seventeen-letters", ["holds a secret of 17 bytes; Windows takes 12 to 16"]),
    ],
)
def test_secret_files(tmp_path: Path, mode: int, secret: str, doubts: list[str]) -> None:
    path = tmp_path / "secret"
    path.write_text(secret)
    path.chmod(mode)
    found = warnings(tmp_path, SOUND + 'chap = { user = "x", secret_file = "secret" }\n')
    assert len(found) == len(doubts)
    for doubt, warning in zip(doubts, found, strict=True):
        assert doubt in warning
        assert warning.startswith('7: targets."iqn.2026-11.lab.example:X".chap.secret_file: ')
        assert secret not in warning
