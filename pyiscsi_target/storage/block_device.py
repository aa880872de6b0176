"""What Linux says of a block device: its block sizes and whether it takes discards."""

import array
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BLKSSZGET = 0x1268  # linux/fs.h: logical block size, an int
BLKPBSZGET = 0x127B  # linux/fs.h: physical block size, an unsigned int

SYSFS = Path("/sys/dev/block")


def _ask(fd: int, request: int, otherwise: int) -> int:
    answer = array.array("i", [0])
    try:
        fcntl.ioctl(fd, request, answer)
    except (OSError, AttributeError):
        return otherwise
    return answer[0] or otherwise


def logical_block_bytes(fd: int) -> int:
    """The smallest unit that the device addresses."""
    return _ask(fd, BLKSSZGET, 512)


def physical_block_bytes(fd: int) -> int:
    """The unit that the medium prefers."""
    return _ask(fd, BLKPBSZGET, logical_block_bytes(fd))


def discard_granularity_bytes(fd: int) -> int:
    """The unit in which the device gives space back; 0 where it does not, or nobody knows."""
    number = os.fstat(fd).st_rdev
    device = SYSFS / f"{os.major(number)}:{os.minor(number)}"
    for queue in (device / "queue", device / ".." / "queue"):  # a partition has its disk's
        try:
            limit = int((queue / "discard_max_bytes").read_text())
            granularity = int((queue / "discard_granularity").read_text())
        except (OSError, ValueError):
            continue
        return granularity if limit else 0
    return 0
