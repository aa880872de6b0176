"""What a scrape returns, over HTTP as Prometheus does it, and that nothing survives a stop."""

import asyncio
import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY

from pyiscsi_target import __version__
from pyiscsi_target.admin.metrics import LunCounters, Metrics, MetricsServer, sample_loop_lag

TARGET = "iqn.2026-11.lab.example:x"


class Counted:
    """Figures of a server that has done a little."""

    def sessions(self) -> dict[str, int]:
        return {TARGET: 2, "": 1}

    def logins(self) -> dict[str, int]:
        return {"accepted": 3, "not_authorized": 4}

    def luns(self) -> list[LunCounters]:
        return [
            LunCounters(TARGET, 0, "quorum", 10, 20, 30, 40960, 81920, 5),
            LunCounters(TARGET, 1, "data", 0, 0, 0, 0, 0, 0),
        ]


@contextlib.contextmanager
def serving(metrics: Metrics, host: str = "127.0.0.1") -> Iterator[MetricsServer]:
    server = MetricsServer(metrics, host, 0)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()


@pytest.mark.parametrize(
    "line",
    [
        f'pyiscsi_sessions{{target="{TARGET}"}} 2.0',
        'pyiscsi_sessions{target=""} 1.0',
        'pyiscsi_logins_total{result="accepted"} 3.0',
        'pyiscsi_logins_total{result="not_authorized"} 4.0',
        f'pyiscsi_commands_total{{disk="quorum",lun="0",operation="read",target="{TARGET}"}} 10.0',
        f'pyiscsi_commands_total{{disk="quorum",lun="0",operation="write",target="{TARGET}"}} 20.0',
        f'pyiscsi_commands_total{{disk="quorum",lun="0",operation="other",target="{TARGET}"}} 30.0',
        f'pyiscsi_bytes_total{{disk="quorum",lun="0",operation="read",target="{TARGET}"}} 40960.0',
        f'pyiscsi_bytes_total{{disk="quorum",lun="0",operation="write",target="{TARGET}"}} 81920.0',
        f'pyiscsi_errors_total{{disk="quorum",lun="0",target="{TARGET}"}} 5.0',
        f'pyiscsi_errors_total{{disk="data",lun="1",target="{TARGET}"}} 0.0',
    ],
)
def test_a_scrape_tells(line: str) -> None:
    with serving(Metrics(Counted())) as server:
        status, text = get(server.port, "/metrics")
    assert status == 200
    assert _sample(line) in map(_sample, text.splitlines())


def _sample(line: str) -> tuple[str, str, frozenset[str]]:
    """Name, value and labels, whatever the order of the labels."""
    name, _, rest = line.partition("{")
    labels, _, value = rest.partition("} ")
    return name, value, frozenset(labels.split(","))


def test_build_info_and_lag() -> None:
    metrics = Metrics(Counted())
    metrics.loop_lag.observe(0.004)
    with serving(metrics) as server:
        _, text = get(server.port, "/metrics")
    assert f'version="{__version__}"' in text
    assert 'pyiscsi_event_loop_lag_seconds_bucket{le="0.0025"} 0.0' in text
    assert 'pyiscsi_event_loop_lag_seconds_bucket{le="0.005"} 1.0' in text


@pytest.mark.parametrize("path", ["/", "/metricsx", "/metrics/", "/favicon.ico", "/../metrics"])
def test_nothing_else_is_there(path: str) -> None:
    with serving(Metrics(Counted())) as server:
        assert get(server.port, path)[0] == 404
        assert get(server.port, "/metrics?name=x")[0] == 200


def test_figures_are_read_when_scraped() -> None:
    class Growing(Counted):
        count = 0

        def logins(self) -> dict[str, int]:
            self.count += 1
            return {"accepted": self.count}

    with serving(Metrics(Growing())) as server:
        assert 'pyiscsi_logins_total{result="accepted"} 1.0' in get(server.port, "/metrics")[1]
        assert 'pyiscsi_logins_total{result="accepted"} 2.0' in get(server.port, "/metrics")[1]


def test_the_global_registry_stays_as_it_was() -> None:
    Metrics(Counted())
    Metrics(Counted())
    assert not [m for m in REGISTRY.collect() if m.name.startswith("pyiscsi")]


def test_no_thread_and_no_port_survives_a_stop() -> None:
    with serving(Metrics(Counted())) as server:
        port = server.port
    assert "metrics" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_stop_without_start_gives_the_port_back() -> None:
    server = MetricsServer(Metrics(Counted()), "127.0.0.1", 0)
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


def test_a_port_in_use_is_an_error_at_once() -> None:
    with serving(Metrics(Counted())) as server, pytest.raises(OSError, match="in use"):
        MetricsServer(Metrics(Counted()), "127.0.0.1", server.port)


def test_ipv6() -> None:
    if not _has_ipv6():
        pytest.skip("no IPv6 on this machine")
    with serving(Metrics(Counted()), "::1") as server:
        assert get(server.port, "/metrics", "::1")[0] == 200


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("garbage", [b"", b"\r\n", b"GET\r\n\r\n", b"\xff" * 70000])
def test_garbage_does_not_stop_it(garbage: bytes) -> None:
    with serving(Metrics(Counted())) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as peer:
            peer.sendall(garbage)
        assert get(server.port, "/metrics")[0] == 200


async def test_lag_is_how_late_a_timer_ran() -> None:
    clock = 100.0
    late = iter([0.0, 0.25, -0.001])
    seen: list[float] = []

    async def sleep(delay_s: float) -> None:
        nonlocal clock
        try:
            clock += delay_s + next(late)
        except StopIteration:
            raise asyncio.CancelledError from None

    with pytest.raises(asyncio.CancelledError):
        await sample_loop_lag(seen.append, interval_s=0.5, now=lambda: clock, sleep=sleep)
    assert seen == pytest.approx([0.0, 0.25, 0.0])
