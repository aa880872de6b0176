"""CHAP files: what they hold, who may read them, and that no message holds a secret."""

from pathlib import Path

import pytest

from pyiscsi_target.client import Credentials, read_chap_file

ONE_WAY = 'name = "node-a"\nsecret = "node to target"\n'
MUTUAL = ONE_WAY + 'target_name = "cluster"\ntarget_secret = "target to node"\n'


def private(path: Path, content: str) -> Path:
    path.write_text(content)
    path.chmod(0o600)
    return path


def test_one_way(tmp_path: Path) -> None:
    credentials = read_chap_file(private(tmp_path / "chap.toml", ONE_WAY))
    assert credentials == Credentials("node-a", b"node to target")


def test_mutual(tmp_path: Path) -> None:
    credentials = read_chap_file(str(private(tmp_path / "chap.toml", MUTUAL)))
    assert credentials == Credentials("node-a", b"node to target", "cluster", b"target to node")
    assert "to target" not in repr(credentials)
    assert "to node" not in repr(credentials)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o644])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = private(tmp_path / "chap.toml", ONE_WAY)
    path.chmod(mode)
    with pytest.raises(ValueError, match=rf"mode 0{mode:o}\); run chmod 600"):
        read_chap_file(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none: No such file"):
        read_chap_file(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("Hidden words", "is not TOML"),
        ('name = "Hidden', "is not TOML"),
        ('name = "x"', "secret must be a text"),
        ('secret = "Hidden words"', "name must be a text"),
        ('name = ""\nsecret = "Hidden words"', "name must be a text"),
        ('name = "x"\nsecret = 12', "secret must be a text"),
        (ONE_WAY + 'target_name = "Hidden"', "target_secret must be a text"),
        (ONE_WAY + 'target_secret = "Hidden"', "target_name must be a text"),
        (ONE_WAY + 'password = "Hidden"', "password is no key here"),
        (MUTUAL.replace("target to node", "node to target"), "must differ"),
        (ONE_WAY + "#" * 5000, "longer than 4096 bytes"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, content: str, complaint: str) -> None:
    path = private(tmp_path / "chap.toml", content)
    with pytest.raises(ValueError, match=complaint) as refused:
        read_chap_file(path)
    assert "Hidden" not in str(refused.value)
    assert "node to" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = private(tmp_path / "chap.toml", "")
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(ValueError, match="is not TOML"):
        read_chap_file(path)
