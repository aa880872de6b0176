"""The example that docs/client.md shows does what it says."""

import runpy
from pathlib import Path

import pytest

from tests.support.live import config_of, serving
from tests.support.server import ROOT, TARGET

EXAMPLE = ROOT / "examples" / "two_nodes.py"


async def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(EXAMPLE))["main"]
    async with serving(config_of(tmp_path), tmp_path) as live:
        host, port = live.address()
        for _ in range(2):  # it leaves the disk's reservations as it has found them
            await main(f"iscsi://{host}:{port}/{TARGET}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "b, not registered: WRITE(16) to LUN 0: RESERVATION CONFLICT"
    assert lines[1].startswith("b holds it: HeldReservation(")
    assert "key=11, type=5" in lines[1]
    assert lines[2].startswith("a is told: [")
    assert len(lines) == 6


def test_it_is_shown_as_it_is() -> None:
    shown = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
    assert EXAMPLE.read_text(encoding="utf-8").partition("import asyncio")[2] in shown
