"""The server of a demonstration: it serves, keeps its errors, and leaves nothing behind."""

import logging
from pathlib import Path

import pytest

from pyiscsi_target.app import StartError
from pyiscsi_target.client import ConnectionLost, Session
from pyiscsi_target.demo.stage import LUN, TARGET, stage

LOGGER = logging.getLogger("pyiscsi_target")


async def test_a_disk_is_served_as_long_as_the_block_lasts(tmp_path: Path) -> None:
    async with stage(tmp_path) as server:
        async with Session.connect(server.portal, TARGET) as session:
            await session.ready(LUN)
            assert (await session.capacity(LUN)).size_bytes == 64 << 20
        assert server.errors == []
    with pytest.raises(ConnectionLost, match="no connection"):
        await Session.connect(server.portal, TARGET)


async def test_its_errors_are_kept_and_its_chatter_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = LOGGER.handlers[:], LOGGER.propagate
    async with stage(tmp_path) as server:
        logging.getLogger("pyiscsi_target.storage").warning("a warning")
        logging.getLogger("pyiscsi_target.storage").error("an error")
        assert server.errors == ["an error"]
    assert not caplog.records
    assert (LOGGER.handlers, LOGGER.propagate) == before


async def test_a_server_that_cannot_start(tmp_path: Path) -> None:
    before = LOGGER.handlers[:], LOGGER.propagate
    (tmp_path / "quorum.img").mkdir()
    with pytest.raises(StartError):
        async with stage(tmp_path):
            raise AssertionError("it must not start")
    assert (LOGGER.handlers, LOGGER.propagate) == before
