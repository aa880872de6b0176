"""A live server with two disks and two portals, and the means to break it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.broken_target import Breaker
from tests.support.live import MIB, Live, config_of, serving


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    config = config_of(
        tmp_path,
        server={"portals": ["127.0.0.1:0", "127.0.0.1:0"]},
        disks={name: {"path": f"{name}.img", "size": 4 * MIB} for name in ("disk", "other")},
    )
    async with serving(config, tmp_path) as server:
        yield server


@pytest.fixture
def breaker(live: Live, monkeypatch: pytest.MonkeyPatch) -> Breaker:
    return Breaker(monkeypatch, live)
