"""RFC 7143 section 11.5.1 where it needs a whole server: a reset that ends every session."""

from pathlib import Path

from pyiscsi_target.iscsi.constants import TaskManagement, TaskManagementResponse
from tests.support.live import config_of, serving

OTHER_INITIATOR = "iqn.2026-11.example.test:other-host"


async def test_11_5_1_target_cold_reset_ends_all_sessions_of_the_target(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        bystander = await live.log_in(initiator=OTHER_INITIATOR)
        peer = await live.log_in()
        response = await peer.manage(TaskManagement.TARGET_COLD_RESET)
        assert response == TaskManagementResponse.FUNCTION_COMPLETE
        await peer.ended()
        await bystander.ended()
        again = await live.log_in()
        assert (await again.command(bytes(6))).status == 0


async def test_11_5_1_logical_unit_reset_leaves_sessions_alone(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        bystander = await live.log_in(initiator=OTHER_INITIATOR)
        peer = await live.log_in()
        response = await peer.manage(TaskManagement.LOGICAL_UNIT_RESET)
        assert response == TaskManagementResponse.FUNCTION_COMPLETE
        assert (await peer.command(bytes(6))).asc == (0x29, 0x03)
        assert (await bystander.command(bytes(6))).asc == (0x29, 0x03)
