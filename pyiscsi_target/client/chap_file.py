"""CHAP secrets from a file, so that none stands on a command line or in a script."""

import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from ..iscsi.chap import Credentials

FILE_BYTES_MAXIMUM = 4096
FORM = (
    'name = "NODE", secret = "..." and, for mutual CHAP, target_name = "...", '
    'target_secret = "...", one a line'
)
_REQUIRED = ("name", "secret")
_MUTUAL = ("target_name", "target_secret")
_SHARED = 0o077


def read_chap_file(path: str | os.PathLike[str]) -> Credentials:
    """Credentials from a small TOML file that its owner alone can read (chmod 600).

    ::

        name = "node-a"                 # who we are
        secret = "node to target"       # what proves it
        target_name = "cluster"         # optional: the target must prove who it is, too
        target_secret = "target to node"

    Raises ValueError that says what is wrong with the file and quotes nothing of it.
    """
    path = Path(path)
    try:
        keys = tomllib.loads(_read_private(path).decode())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} is not TOML; write {FORM}") from None
    return _credentials(path, keys)


def _read_private(path: Path) -> bytes:
    """The content, unless others can read it too. The open file is judged, not its name."""
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if os.name == "posix" and mode & _SHARED:
            raise ValueError(
                f"{path} can be read by others (mode {mode:04o}); run chmod 600 {path}"
            )
        content = file.read(FILE_BYTES_MAXIMUM + 1)
    if len(content) > FILE_BYTES_MAXIMUM:
        raise ValueError(f"{path} is longer than {FILE_BYTES_MAXIMUM} bytes; write {FORM}")
    return content


def _credentials(path: Path, keys: dict[str, Any]) -> Credentials:
    if unknown := keys.keys() - {*_REQUIRED, *_MUTUAL}:
        raise ValueError(f"{path}: {', '.join(sorted(unknown))} is no key here; write {FORM}")
    mutual = any(key in keys for key in _MUTUAL)
    for key in (*_REQUIRED, *(_MUTUAL if mutual else ())):
        if not isinstance(keys.get(key), str) or not keys[key]:
            raise ValueError(f"{path}: {key} must be a text; write {FORM}")
    if mutual and keys["secret"] == keys["target_secret"]:
        raise ValueError(f"{path}: secret and target_secret must differ (RFC 7143 section 9.2.1)")
    return Credentials(
        keys["name"],
        keys["secret"].encode(),
        keys["target_name"] if mutual else None,
        keys["target_secret"].encode() if mutual else None,
    )
