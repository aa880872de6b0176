"""A load over one plain socket with both digests where asked: `python -m bench.generator`.

Not made to be fast: it serves to compare a server's CPU time per byte with and without digests, and
to keep a slow disk busy. Its last line is what it moved, as JSON.
"""

import argparse
import json
import random
import re
import time

from tests.support.raw_initiator import (
    DATA_IN,
    R2T,
    SCSI_RESPONSE,
    STATUS_PRESENT,
    RawInitiator,
    read_16,
    write_16,
)

URL = re.compile(r"iscsi://(?P<host>[^:/]+):(?P<port>\d+)/(?P<target>[^/]+)/(?P<lun>\d+)")
RUNNING = "running"  # said before the load begins
SPAN_BYTES = 1 << 28  # how much of the disk is touched


class Generator:
    """Keeps `depth` commands of one kind in flight."""

    def __init__(self, url: str, block_bytes: int, *, write: bool, digests: bool) -> None:
        match = URL.fullmatch(url)
        if match is None:
            raise ValueError(f"not a plain iSCSI URL: {url}")
        self._lun = int(match["lun"])
        self._block_bytes = block_bytes
        self._write = write
        self._data = random.Random(1).randbytes(block_bytes) if write else b""
        self._source = random.Random(2)
        self._session = RawInitiator((match["host"], int(match["port"])))
        digest = "CRC32C" if digests else "None"
        keys = {"HeaderDigest": digest, "DataDigest": digest}
        self._session.login(match["target"], keys=keys)
        if self._session.header_digest != digests or self._session.data_digest != digests:
            raise ValueError(f"the target did not agree to digests {digest}")
        self._session.command(bytes(6), lun=self._lun)  # takes the unit attention away

    def _start(self) -> None:
        slot = self._source.randrange(SPAN_BYTES // self._block_bytes)
        lba, blocks = slot * self._block_bytes // 512, self._block_bytes // 512
        if self._write:
            self._session.start(write_16(lba, blocks), lun=self._lun, data=self._data)
        else:
            length = self._block_bytes
            self._session.start(read_16(lba, blocks), lun=self._lun, read_bytes=length)

    def _finish_one(self) -> None:
        while True:
            pdu = self._session.receive()
            if pdu.opcode == R2T:
                self._session.answer_r2t(pdu, self._data)
            elif pdu.opcode == SCSI_RESPONSE or (
                pdu.opcode == DATA_IN and pdu.flags & STATUS_PRESENT
            ):
                if pdu.header[3]:
                    raise AssertionError(f"SCSI status {pdu.header[3]:#x}")
                return

    def run(self, depth: int, duration_s: float) -> tuple[int, float]:
        """Finished commands and the seconds they took."""
        started_s = time.monotonic()
        until_s = started_s + duration_s
        for _ in range(depth):
            self._start()
        finished = 0
        while time.monotonic() < until_s:
            self._finish_one()
            self._start()
            finished += 1
        for _ in range(depth):
            self._finish_one()
        took_s = time.monotonic() - started_s
        self._session.logout()
        self._session.close()
        return finished + depth, took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--block", type=int, default=65536, help="bytes a command")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--digests", action="store_true")
    options = parser.parse_args()
    generator = Generator(options.url, options.block, write=options.write, digests=options.digests)
    print(RUNNING, flush=True)
    finished, took_s = generator.run(options.depth, options.seconds)
    moved = {"operations_per_s": finished / took_s, "total_bytes": finished * options.block}
    print(json.dumps(moved))


if __name__ == "__main__":
    main()
