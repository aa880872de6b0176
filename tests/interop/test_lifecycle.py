"""Starting, refusing to start, draining, and what a killed server must not lose."""

import os
import random
import re
import shutil
import signal
import socket
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.images import MIB
from tests.support.process import Child, child, run_tool, tool
from tests.support.qemu import Where, qemu_io
from tests.support.raw_initiator import (
    ASYNC_MESSAGE,
    R2T,
    RawInitiator,
    raw_session,
    read_16,
    write_16,
)
from tests.support.server import ROOT, TARGET, Serve, Setup, serve_command, serving

DRAIN_BOUND = {"drain_timeout_s": 1.0}


def disk(directory: Path, name: str = "disk.img") -> dict[str, object]:
    return {"path": directory / name, "size": 64 * MIB}


def start_fails(setup: Setup, directory: Path) -> tuple[int, str]:
    """Exit status and output of a server that must not come up."""
    directory.mkdir()
    config = setup.write(directory)
    with child(serve_command(config), env={"PYTHONPATH": str(ROOT)}, merge=True) as process:
        status = process.wait()
        assert not process.matches("event=ready")
        return status, process.output


# Starting


def test_the_lab_config_serves_from_a_fresh_clone(tmp_path: Path) -> None:
    """As `make serve` runs it: by a relative path, with no disk there yet."""
    (tmp_path / "configs").mkdir()
    text = (ROOT / "configs/lab.toml").read_text()
    text = text.replace('["0.0.0.0:3260", "[::]:3260"]', '["127.0.0.1:0"]')
    (tmp_path / "configs/lab.toml").write_text(text)
    command = serve_command(Path("configs/lab.toml"))
    with child(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, merge=True) as process:
        port = process.wait_for_line(r"event=listening portal=127\.0\.0\.1:(\d+)")[1]
        process.wait_for_line("event=ready")
        listing = run_tool([tool("iscsi-ls"), "-s", f"iscsi://127.0.0.1:{port}"]).stdout
        assert process.stop() == 0
    assert "Lun:0" in listing
    assert "Lun:1" in listing
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "configs/disks").iterdir()}
    assert sizes == {"quorum.img": 1024 * MIB, "data.img": 10240 * MIB}


# Refusing to start


def test_a_second_server_on_the_same_image_is_refused(serve: Serve, tmp_path: Path) -> None:
    setup = Setup({"disk": disk(tmp_path)})
    first = serve(setup)
    status, output = start_fails(setup, tmp_path / "second")
    assert status == 1
    assert "disk.img" in output
    with raw_session(first.address, TARGET) as session:
        assert session.command(bytes(6))[0] in (0, 2)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        portal = f"127.0.0.1:{taken.getsockname()[1]}"
        setup = Setup({"disk": disk(tmp_path)}, portals=[portal])
        status, output = start_fails(setup, tmp_path / "server")
    assert status == 1
    assert portal in output


def test_a_missing_image_without_a_size_is_named(tmp_path: Path) -> None:
    setup = Setup({"disk": {"path": tmp_path / "nowhere.img"}})
    status, output = start_fails(setup, tmp_path / "server")
    assert status == 1
    assert "nowhere.img" in re.sub(r"\s", "", output)


def test_every_mistake_in_the_config_is_told_at_once(tmp_path: Path) -> None:
    document = f"""\
[server]
portals = ["127.0.0.1:0"]
state_dir = "{tmp_path / "state"}"
metricz = "127.0.0.1:0"

[disks.disk]
path = "{tmp_path / "disk.img"}"
size = "64 Mib"
block_size = 500

[targets."iqn.2026-11.example.test:t"]
luns = {{ 0 = "dick" }}
"""
    config = tmp_path / "config.toml"
    config.write_text(document, encoding="utf-8")
    for command in ("serve", "check"):
        arguments = [sys.executable, "-m", "pyiscsi_target", command, config]
        with child(arguments, env={"PYTHONPATH": str(ROOT)}, merge=True) as process:
            assert process.wait() == 2, process.output
            for line, key in ((4, "metricz"), (9, "block_size"), (12, "dick")):
                assert re.search(rf"\b{line}\b.*{key}", process.output), (key, process.output)
    assert not (tmp_path / "disk.img").exists()
    assert not (tmp_path / "state").exists()


# Draining


def test_sigterm_asks_for_logout_and_ends_well(serve: Serve, tmp_path: Path) -> None:
    server = serve(Setup({"disk": disk(tmp_path)}))
    with raw_session(server.address, TARGET) as session:
        server.process.send_signal(signal.SIGTERM)
        assert session.receive().opcode == ASYNC_MESSAGE
    assert server.process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_initiator_that_stays_is_left_behind_after_the_bound(
    serve: Serve, tmp_path: Path, number: signal.Signals
) -> None:
    server = serve(Setup({"disk": disk(tmp_path)}, server=DRAIN_BOUND))
    with RawInitiator(server.address) as session:
        session.login(TARGET)
        server.process.send_signal(number)
        assert server.process.wait() == 0


def test_a_drain_finishes_the_write_in_flight(serve: Serve, tmp_path: Path) -> None:
    server = serve(Setup({"disk": disk(tmp_path)}))
    data = os.urandom(MIB)
    with raw_session(server.address, TARGET) as session:
        session.command(bytes(6))
        tag = session.start(write_16(0, MIB // 512), data=data, immediate_bytes=0)
        solicited = session.receive()
        assert solicited.opcode == R2T
        server.process.send_signal(signal.SIGTERM)
        assert session.receive().opcode == ASYNC_MESSAGE
        session.answer_r2t(solicited, data)
        assert session.finish(tag, data)[0] == 0
    assert server.process.wait() == 0
    assert (tmp_path / "disk.img").read_bytes()[:MIB] == data


def test_a_draining_server_takes_no_one_new(serve: Serve, tmp_path: Path) -> None:
    server = serve(Setup({"disk": disk(tmp_path)}))
    with raw_session(server.address, TARGET) as session:
        server.process.send_signal(signal.SIGTERM)
        assert session.receive().opcode == ASYNC_MESSAGE
        with (
            pytest.raises(OSError, match=r"(?i)refused|reset|closed"),
            RawInitiator(server.address) as newcomer,
        ):
            newcomer.login(TARGET)
    assert server.process.wait() == 0


# Killed


def acknowledged(process: Child) -> list[int]:
    """Offsets of the writes that qemu-io reported as done."""
    return [int(match[1]) for match in process.matches(r"^wrote 65536/65536 bytes at offset (\d+)")]


def test_no_write_that_qemu_io_saw_done_is_lost(tmp_path: Path) -> None:
    setup = Setup({"disk": disk(tmp_path)})
    offsets = list(range(0, 64 * MIB, 64 << 10))
    random.Random(7).shuffle(offsets)

    def pattern(offset: int) -> int:
        return (offset >> 16) % 251 + 1

    (tmp_path / "first").mkdir()
    with serving(setup, tmp_path / "first") as server:
        commands = [part for at in offsets for part in ("-c", f"write -P {pattern(at)} {at} 64k")]
        # stdbuf: each acknowledgement is seen when it is printed.
        stdbuf = [shutil.which("stdbuf") or "stdbuf", "-oL"]
        load = [*stdbuf, tool("qemu-io"), *commands, "-f", "raw", server.url()]
        with child(load, merge=True) as writer:
            writer.wait_for_line(rf"at offset {offsets[200]}$")
            server.process.kill()
        done = acknowledged(writer)
    assert 200 < len(done) < len(offsets)
    (tmp_path / "second").mkdir()
    with serving(setup, tmp_path / "second") as server:
        qemu_io(Where(server.url()), [f"read -P {pattern(at)} {at} 64k" for at in done])


def test_no_acknowledged_write_of_a_deep_queue_is_lost(tmp_path: Path) -> None:
    """Several writes at once, and one block written again and again with a rising number."""
    setup = Setup({"disk": disk(tmp_path)})
    generation = struct.Struct(">QQ")
    newest: dict[int, int] = {}

    def block(lba: int, number: int) -> bytes:
        return generation.pack(lba, number) * 256

    def load(address: tuple[str, int], victim: Child) -> None:
        source = random.Random(11)
        pending: dict[int, tuple[int, int]] = {}
        with RawInitiator(address) as session:
            session.login(TARGET)
            session.command(bytes(6))
            for number in range(4000):
                lba = 8 * source.choice([slot for slot in range(64) if not busy(pending, 8 * slot)])
                pending[session.start(write_16(lba, 8), data=block(lba, number))] = (lba, number)
                if number == 3000:
                    victim.send_signal(signal.SIGKILL)
                if len(pending) == 16:
                    answer = session.receive()
                    assert answer.header[3] == 0
                    done_lba, done_number = pending.pop(answer.word(16))
                    newest[done_lba] = done_number

    def busy(pending: dict[int, tuple[int, int]], lba: int) -> bool:
        return any(lba == other for other, _ in pending.values())

    (tmp_path / "first").mkdir()
    with serving(setup, tmp_path / "first") as server:
        with pytest.raises(OSError, match=r"(?i)reset|closed|broken"):
            load(server.address, server.process)
        assert server.process.wait() == -signal.SIGKILL
    assert newest
    (tmp_path / "second").mkdir()
    with (
        serving(setup, tmp_path / "second") as server,
        raw_session(server.address, TARGET) as session,
    ):
        session.command(bytes(6))
        for lba, number in newest.items():
            status, data = session.command(read_16(lba, 8), read_bytes=4096)
            assert status == 0
            found_lba, found_number = generation.unpack_from(data)
            assert found_lba == lba
            assert found_number >= number
            assert data == block(lba, found_number)


def test_servers_come_and_go_side_by_side(tmp_path: Path) -> None:
    """Two servers with images of their own, started at once."""

    def round_trip(number: int) -> None:
        directory = tmp_path / str(number)
        directory.mkdir()
        with serving(Setup({"disk": disk(directory)}), directory) as server:
            qemu_io(Where(server.url()), ["write -P 3 0 1M", "read -P 3 0 1M"])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(round_trip, (0, 1)))
