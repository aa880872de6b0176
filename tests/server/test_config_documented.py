"""README and the example configs say what the models say: every key, every default."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pyiscsi_target.server.config import (
    ChapConfig,
    DiskConfig,
    ServerConfig,
    TargetConfig,
    TargetLimits,
    load_config,
    parse_size,
    warnings_of,
)

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
SECTIONS: dict[str, type[BaseModel]] = {
    "`[server]`": ServerConfig,
    "`[disks.NAME]`": DiskConfig,
    '`[targets."NAME"]`': TargetConfig,
    "`chap` and `mutual_chap`": ChapConfig,
    '`[targets."NAME".limits]`': TargetLimits,
}
FIELDS = {
    section: {field.alias or name: field for name, field in model.model_fields.items()}
    for section, model in SECTIONS.items()
}


def reference(section: str) -> dict[str, str]:
    """Key -> default of a section of the README, as its table spells them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition(f"\n### {section}\n")[2].partition("\n#")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, flags=re.MULTILINE))


@pytest.mark.parametrize("section", SECTIONS)
def test_the_reference_has_every_key(section: str) -> None:
    assert set(reference(section)) == set(FIELDS[section])


@pytest.mark.parametrize("section", SECTIONS)
def test_the_reference_has_the_defaults(section: str) -> None:
    for key, spelt in reference(section).items():
        field = FIELDS[section][key]
        if field.is_required():
            assert spelt == "required", key
        elif spelt.startswith("`"):
            assert _same(tomllib.loads(f"x = {spelt.strip('`')}")["x"], field.default), key
        else:
            assert field.default is None or isinstance(field.default, BaseModel), key


def _same(spelt: Any, default: Any) -> bool:
    if isinstance(spelt, list):
        return spelt == [str(item) for item in default]
    if isinstance(spelt, str) and isinstance(default, int):
        return parse_size(spelt) == default
    return bool(spelt == default)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_full_example_explains_every_key(section: str) -> None:
    text = (CONFIGS / "windows-cluster.toml").read_text(encoding="utf-8")
    for key in FIELDS[section]:
        assert re.search(
            rf"^[# ]*({key} = |\[server\.{key}\]|\[.*\.{key}\])|[{{,] {key} = ",
            text,
            flags=re.MULTILINE,
        ), key


def copied(name: str, directory: Path, *, uncommented: bool = False) -> Path:
    text = (CONFIGS / name).read_text(encoding="utf-8")
    if uncommented:
        text = re.sub(r"^( *)# ?(\[[a-z]|[a-z0-9_]+ = |\{ name)", r"\1\2", text, flags=re.MULTILINE)
    path = directory / name
    path.write_text(text, encoding="utf-8")
    secrets = directory / "secrets"
    secrets.mkdir()
    for secret in ("cluster", "cluster-mutual", "discovery", "discovery-mutual"):
        (secrets / secret).write_text(f"{secret:>16.16}\n".replace(" ", "-"))
        (secrets / secret).chmod(0o600)
    return path


@pytest.mark.parametrize("name", ["lab.toml", "windows-cluster.toml"])
@pytest.mark.parametrize("uncommented", [False, True])
def test_the_examples_raise_no_doubt(tmp_path: Path, name: str, uncommented: bool) -> None:
    path = copied(name, tmp_path, uncommented=uncommented)
    config = load_config(path)
    assert warnings_of(config, path) == []
    assert len(config.disks) == 2


def test_the_commented_defaults_are_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = load_config(copied("windows-cluster.toml", tmp_path / "plain"))
    (tmp_path / "full").mkdir()
    full = load_config(copied("windows-cluster.toml", tmp_path / "full", uncommented=True))
    examples = {"discovery", "state_dir"}
    assert full.server.model_dump(exclude=examples) == plain.server.model_dump(exclude=examples)
    (one,), (other,) = plain.targets.values(), full.targets.values()
    assert one.limits == other.limits
    assert (one.header_digest, one.data_digest) == (other.header_digest, other.data_digest)
    examples = {"path", "physical_block_size", "vendor", "product", "serial"}
    for name, disk in plain.disks.items():
        assert full.disks[name].model_dump(exclude=examples) == disk.model_dump(exclude=examples)
