"""Two nodes at one disk: one holds it, loses its power, and the other takes over.

Writes to the first block of the LUN: python examples/two_nodes.py iscsi://HOST[:PORT]/TARGET[/LUN]
"""

import asyncio
import sys

from pyiscsi_target.client import (
    CommandFailed,
    Initiator,
    Reservations,
    ReservationType,
    Session,
    parse_url,
)

TYPE = ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY


async def main(url: str) -> None:
    disk = parse_url(url)
    lun = disk.lun or 0
    a, b = (Initiator(f"iqn.2026-11.lab.example:{name}", isid=b"\x80\0\0\0\0\1") for name in "ab")
    async with (
        Session.connect(disk.portal, disk.target, a) as first,
        Session.connect(disk.portal, disk.target, b) as second,
    ):
        for node in (first, second):
            await node.ready(lun)  # takes the unit attentions that a new session is told
        block = bytes((await first.capacity(lun)).block_size)
        await Reservations(first, lun).register(0xA)
        await Reservations(first, lun).reserve(0xA, TYPE)
        await first.write(lun, 0, block, fua=True)
        try:
            await second.write(lun, 0, block)
        except CommandFailed as refused:
            print("b, not registered:", refused)

        first.drop()  # the power of a is pulled: no logout, its TCP connection is reset
        await Reservations(second, lun).register(0xB)
        await Reservations(second, lun).preempt(0xB, 0xA, TYPE)
        await second.write(lun, 0, block)
        print("b holds it:", await Reservations(second, lun).read_reservation())

        await first.reconnect()  # the same name and ISID: the same nexus
        print("a is told:", [f"{asc:02X}h/{ascq:02X}h" for asc, ascq in await first.ready(lun)])
        await Reservations(second, lun).clear(0xB)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
