"""Prometheus metrics of a running server, at /metrics of an address of their own.

Nothing here is on the data path: the server counts in plain integers, which are read when someone
scrapes. Scrapes are answered in a thread, so that a large answer does not hold up the event loop.
"""

import asyncio
import logging
import platform
import socket
import socketserver
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import make_wsgi_app
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .. import __version__

PATH = "/metrics"
LAG_INTERVAL_S = 0.5
_LAG_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_PEER_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LunCounters:
    """What one LUN of one target has done since the server started."""

    target: str
    lun: int
    disk: str
    read_commands: int
    write_commands: int
    other_commands: int
    read_bytes: int
    written_bytes: int
    errors: int


class Figures(Protocol):
    """What the server can tell at any moment, from any thread: each call returns a snapshot."""

    def sessions(self) -> Mapping[str, int]:
        """Open sessions by target name ("" for discovery)."""
        ...

    def logins(self) -> Mapping[str, int]:
        """Logins so far by result ("accepted", or why not)."""
        ...

    def luns(self) -> Iterable[LunCounters]: ...


class FiguresCollector(Collector):
    """Turns a server's figures into metric families at each scrape."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask a server that has not started yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        sessions = GaugeMetricFamily("pyiscsi_sessions", "Open sessions.", labels=["target"])
        for target, count in self._figures.sessions().items():
            sessions.add_metric([target], count)
        yield sessions
        logins = CounterMetricFamily("pyiscsi_logins", "Logins by result.", labels=["result"])
        for result, count in self._figures.logins().items():
            logins.add_metric([result], count)
        yield logins
        yield from _lun_families(self._figures.luns())


_LUN_LABELS = ["target", "lun", "disk"]

# Family, help, label, and label value -> attribute of LunCounters.
_LUN_FAMILIES: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    (
        "pyiscsi_commands",
        "SCSI commands executed.",
        "operation",
        {"read": "read_commands", "write": "write_commands", "other": "other_commands"},
    ),
    (
        "pyiscsi_bytes",
        "Bytes of user data moved.",
        "operation",
        {"read": "read_bytes", "write": "written_bytes"},
    ),
    ("pyiscsi_errors", "Commands that did not end in GOOD status.", "", {"": "errors"}),
)


def _lun_families(luns: Iterable[LunCounters]) -> Iterable[Metric]:
    luns = list(luns)
    for name, documentation, label, attributes in _LUN_FAMILIES:
        labels = [*_LUN_LABELS, label] if label else _LUN_LABELS
        family = CounterMetricFamily(name, documentation, labels=labels)
        for counters in luns:
            where = [counters.target, str(counters.lun), counters.disk]
            for value, attribute in attributes.items():
                values = [*where, value] if label else where
                family.add_metric(values, getattr(counters, attribute))
        yield family


class Metrics:
    """A registry of its own, with everything that a scrape returns."""

    def __init__(self, figures: Figures) -> None:
        self.registry = CollectorRegistry()
        build = Gauge(
            "pyiscsi_build_info",
            "Constant 1, labelled by what is running.",
            ["version", "python"],
            registry=self.registry,
        )
        build.labels(__version__, platform.python_version()).set(1)
        self.loop_lag = Histogram(
            "pyiscsi_event_loop_lag_seconds",
            "How late the event loop ran a timer.",
            buckets=_LAG_BUCKETS_S,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(FiguresCollector(figures))


async def sample_loop_lag(
    observe: Callable[[float], None],
    *,
    interval_s: float = LAG_INTERVAL_S,
    now: Callable[[], float] | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Tell `observe` again and again how late a timer ran, until cancelled."""
    now = now or asyncio.get_running_loop().time
    while True:
        due = now() + interval_s
        await sleep(interval_s)
        observe(max(0.0, now() - due))


class MetricsServer:
    """The HTTP endpoint: started once, stopped without leaving a thread or a socket."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        """Bind and listen. Raises OSError."""
        self._server = _HttpServer(host, port)
        self._server.set_app(_only_metrics(make_wsgi_app(metrics.registry)))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="metrics"
        )

    @property
    def port(self) -> int:
        """The port that is bound, also where a free one was asked for."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Close; waits for a scrape in flight, at most as long as a peer may stall."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _HttpServer(WSGIServer):
    """One scrape at a time; a peer that stalls is dropped."""

    allow_reuse_address = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _QuietHandler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the name service who `host` is, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("metrics request from %s failed", client_address[0], exc_info=True)


class _QuietHandler(WSGIRequestHandler):
    timeout = _PEER_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug("metrics request from %s: " + format, self.client_address[0], *args)


_WsgiApp = Callable[[dict[str, Any], Any], Iterable[bytes]]


def _only_metrics(metrics_app: _WsgiApp) -> _WsgiApp:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == PATH:
            return metrics_app(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [f"Only {PATH} is here.\n".encode()]

    return app
