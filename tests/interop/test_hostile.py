"""What no decent initiator sends: the server answers or hangs up, and serves everyone else."""

import contextlib
import os
import random
import struct
from pathlib import Path

import pytest

from tests.support.images import MIB
from tests.support.raw_initiator import (
    BHS_LENGTH,
    DATA_IN,
    R2T,
    RawInitiator,
    raw_session,
    read_16,
    write_16,
)
from tests.support.server import TARGET, Serve, Server, Setup


@pytest.fixture
def server(serve: Serve, tmp_path: Path) -> Server:
    setup = Setup(
        {"disk": {"path": tmp_path / "disk.img", "size": 16 * MIB}},
        server={"login_timeout_s": 1.0},
    )
    return serve(setup)


def assert_serves(server: Server) -> None:
    """A newcomer writes and reads, and the server has no complaint about itself."""
    data = os.urandom(65536)
    with raw_session(server.address, TARGET) as session:
        session.command(bytes(6))
        assert session.command(write_16(0, 128), data=data)[0] == 0
        assert session.command(read_16(0, 128), read_bytes=65536) == (0, data)
    assert server.process.running
    assert not server.process.matches("Traceback"), server.process.output


def bhs(opcode: int, flags: int = 0x80, length: int = 0, ahs_words: int = 0) -> bytes:
    header = bytearray(BHS_LENGTH)
    header[0:2] = opcode, flags
    header[4] = ahs_words
    header[5:8] = length.to_bytes(3)
    return bytes(header)


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(4096)


STRANGERS = {
    "nothing": b"",
    "one byte": b"\x43",
    "zeroes": bytes(4096),
    "ones": b"\xff" * 4096,
    "http": b"GET / HTTP/1.1\r\nHost: disks\r\n\r\n" * 4,
    "16 MiB login": bhs(0x43, 0x87, 0xFFFFFF) + bytes(65536),
    "command before login": bhs(0x01, 0xC1),
    "login with every AHS word": bhs(0x43, 0x87, 0, 255) + bytes(1020),
    "login without keys": bhs(0x43, 0x87),
    "half a login": bhs(0x43, 0x87, 512) + b"InitiatorName=iqn.2026-11.example.test:x",
    "login keys without end": bhs(0x43, 0x47, 8192) + b"X=" + b"y" * 8190,
    **{f"noise {seed}": noise(seed) for seed in range(8)},
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_garbage_instead_of_a_login(server: Server, stranger: str) -> None:
    with RawInitiator(server.address) as connection:
        connection.socket.sendall(STRANGERS[stranger])
        drain_until_closed(connection)
    assert_serves(server)


def drain_until_closed(connection: RawInitiator) -> None:
    """Read what the server has to say until it hangs up (the login deadline at the latest)."""
    with contextlib.suppress(ConnectionResetError):
        while connection.socket.recv(65536):
            pass


@pytest.mark.parametrize("seed", range(8))
def test_garbage_in_the_full_feature_phase(server: Server, seed: int) -> None:
    with RawInitiator(server.address) as session:
        session.login(TARGET)
        with contextlib.suppress(OSError):
            session.socket.sendall(noise(seed) * 4)
        session.reset()
    assert_serves(server)


def test_garbage_with_another_session_at_work(server: Server) -> None:
    with raw_session(server.address, TARGET) as honest:
        honest.command(bytes(6))
        for seed in range(8):
            with RawInitiator(server.address) as connection:
                connection.socket.sendall(noise(seed))
            assert honest.command(read_16(0, 8), read_bytes=4096)[0] == 0
    assert_serves(server)


@pytest.mark.parametrize("sent_bytes", [0, 1, BHS_LENGTH, BHS_LENGTH + 1000])
def test_a_connection_cut_within_a_write_burst(server: Server, sent_bytes: int) -> None:
    """The blocks of the torn command hold old or new data, and nothing waits for the rest."""
    old, new = bytes(MIB), b"\xa5" * MIB
    with RawInitiator(server.address) as session:
        session.login(TARGET, keys={"InitialR2T": "Yes", "ImmediateData": "No"})
        session.command(bytes(6))
        session.start(write_16(0, MIB // 512), data=new, immediate_bytes=0)
        r2t = session.receive()
        assert r2t.opcode == R2T
        torn = struct.pack(">BBxxI", 0x05, 0, 8192) + r2t.header[8:24] + bytes(24) + new[:8192]
        session.socket.sendall(torn[:sent_bytes])
        session.reset()
    with raw_session(server.address, TARGET) as session:
        session.command(bytes(6))
        status, data = session.command(read_16(0, MIB // 512), read_bytes=MIB)
    assert status == 0
    blocks = {data[at : at + 512] for at in range(0, MIB, 512)}
    assert blocks <= {old[:512], new[:512]}
    assert_serves(server)


def test_a_connection_cut_within_a_read_burst(server: Server) -> None:
    """An initiator asks for far more than it reads, and is gone."""
    for _ in range(4):
        with RawInitiator(server.address) as session:
            session.login(TARGET)
            session.command(bytes(6))
            for _ in range(16):
                session.start(read_16(0, 2048), read_bytes=MIB)
            assert session.receive().opcode == DATA_IN
            session.reset()
    assert_serves(server)


def test_the_same_isid_again_reinstates_the_session(server: Server) -> None:
    with RawInitiator(server.address) as first:
        first.login(TARGET)
        with raw_session(server.address, TARGET) as second:
            second.command(bytes(6))
            assert second.command(read_16(0, 1), read_bytes=512)[0] == 0
            drain_until_closed(first)
    assert_serves(server)


DIGESTS = ["None", "CRC32C"]


@pytest.mark.parametrize("header", DIGESTS)
@pytest.mark.parametrize("data", DIGESTS)
def test_digests_both_ways(server: Server, header: str, data: str) -> None:
    keys = {"HeaderDigest": header, "DataDigest": data}
    content = os.urandom(MIB + 512 * 3)
    blocks = len(content) // 512
    with raw_session(server.address, TARGET, keys=keys) as session:
        assert (session.keys["HeaderDigest"], session.keys["DataDigest"]) == (header, data)
        session.command(bytes(6))
        assert session.command(write_16(1, blocks), data=content)[0] == 0
        assert session.command(read_16(1, blocks), read_bytes=len(content)) == (0, content)
    assert_serves(server)
