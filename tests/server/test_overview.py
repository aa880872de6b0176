"""What a server tells of itself."""

from pathlib import Path

from pyiscsi_target.server.config import Endpoint, load_config
from pyiscsi_target.server.overview import Overview, TargetRow, overview_of

CONFIG = """
[disks.quorum]
path = "quorum.img"
[disks.scratch]
path = "ram:"
size = "16 MiB"
read_only = true
[targets."iqn.2026-11.lab.example:a"]
luns = { 1 = "scratch", 0 = "quorum" }
initiators = [
    "iqn.*",
    { address = "192.0.2.0/24", luns = { 0 = "quorum" } },
    { name = "*", luns = {} },
]
chap = { user = "x", secret_file = "secret" }
data_digest = "required"
[targets."iqn.2026-11.lab.example:b"]
"""


def test_overview(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("never-to-be-shown")
    (tmp_path / "config.toml").write_text(CONFIG)
    config = load_config(tmp_path / "config.toml")
    assert overview_of(config, {"quorum": 2**30}, [Endpoint("::1", 3260)]) == Overview(
        targets=(
            TargetRow(
                name="iqn.2026-11.lab.example:a",
                luns=("0: quorum, 1 GiB", "1: scratch, 16 MiB, read only, volatile"),
                admitted=("iqn.*", "192.0.2.0/24 (0: quorum)", "* (no LUNs)"),
                terms=("CHAP", "data digest"),
            ),
            TargetRow("iqn.2026-11.lab.example:b", (), ("nobody",), ()),
        ),
        portals=("[::1]:3260",),
    )
