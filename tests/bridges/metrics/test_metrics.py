"""A kernel's figures for Prometheus: names and units, bounds, and an endpoint that hostile clients cannot use up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import uxk
from uxk.bridges.control_client import ControlClient
from uxk.bridges.control_server import ControlServer
from uxk.bridges.metrics import server as server_file
from uxk.bridges.metrics import snapshot as snapshot_file
from uxk.bridges.metrics.families import OPENMETRICS, families, render
from uxk.bridges.metrics.server import MetricsServer, parse_address
from uxk.bridges.metrics.snapshot import take_snapshot
from uxk.core.account import COUNTERS, GAUGES
from uxk.core.histogram import Histogram
from uxk.errors import UsageError
from uxk.uapi.metrics import LATENCY_BOUNDS_NS

pytest.importorskip("prometheus_client")
MS = 1_000_000


class Adviser(uxk.MLAgent):
    """Advises."""

    manifest = uxk.Manifest(name="adviser", version="1.0", license="Apache-2.0")
    model = "m0"
    sites = ("m0.site",)

    def recommend(self, ctx: uxk.Context, site: str) -> bytes:
        return b"bad"


async def busy(kernel: uxk.Kernel) -> None:
    """Something of everything."""
    await kernel.modprobe("null", latency_ns="100us", size="1MiB")
    proxy = kernel.create_model("test", "m0")
    rows = proxy.dataset("rows", [("a", "u1")], capacity=4)
    proxy.site("m0.site", check=lambda payload: "malformed", units=4)
    await kernel.insmod(Adviser)
    rows.append([(1,), (2,)])
    rows.publish()
    port = kernel.open_port("null0", lambda _: None, "me")
    for _ in range(5):
        port.submit(uxk.Request(0, uxk.Op.READ, length=512))
    await kernel.run_until_ns(10 * MS)


def samples_of(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


async def test_figures_are_those_of_the_kernel() -> None:
    async with uxk.Kernel(seed=7) as kernel:
        await busy(kernel)
        found = samples_of(render(take_snapshot(kernel))[0].decode())
        account = kernel.agents["null"].account
    assert value(found, "uxk_kernel_time_seconds") == 0.01
    assert value(found, "uxk_module_requests_total", module="null") == account.requests == 5
    assert value(found, "uxk_module_failed_requests_total", module="null") == account.failed
    assert value(found, "uxk_module_state", module="null", uxk_module_state="live") == 1
    assert value(found, "uxk_module_request_latency_seconds_count", module="null") == 5
    assert value(found, "uxk_module_request_latency_seconds_bucket", module="null", le="+Inf") == 5
    assert value(found, "uxk_site_received_hints_total", model="m0", site="m0.site") == 1
    assert value(found, "uxk_site_rejects_total", model="m0", site="m0.site", reason="malformed") == 1
    assert value(found, "uxk_module_rejects_total", module="adviser", reason="hint_malformed") == 1
    assert value(found, "uxk_model_mode", model="m0", uxk_model_mode="learning") == 1
    assert value(found, "uxk_dataset_rows", model="m0", dataset="rows") == 2
    assert value(found, "uxk_kmsg_records_total", level="info") > 3
    assert value(found, "uxk_queue_depth_entries", module="null", queue="sq") == 64


async def test_nothing_of_the_run_changes() -> None:
    hashes = set()
    for looks in (0, 3):
        async with uxk.Kernel(seed=7) as kernel:
            await busy(kernel)
            for _ in range(looks):
                take_snapshot(kernel)
            hashes.add(kernel.event_hash())
    assert len(hashes) == 1


async def test_names_follow_the_conventions() -> None:
    """prometheus.io/docs/practices/naming: base units at the end, _total for counters, help for each, once."""
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    async with uxk.Kernel(seed=7) as kernel:
        await busy(kernel)
        snapshot = take_snapshot(kernel)
    text, kind = render(snapshot, OPENMETRICS)
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    found = list(text_string_to_metric_families(text.decode()))  # the parser refuses what is no OpenMetrics
    names = [family.name for family in found]
    assert len(names) == len(set(names)) == len(list(families(snapshot)))
    for family in found:
        assert family.name.startswith("uxk_") and family.documentation.endswith(".")
        assert not re.search(r"_(ns|us|ms|ppm|nanoseconds|milliseconds|kilobytes)(_|$)", family.name), family.name
        assert not family.name.endswith("_total")
    assert render(snapshot)[1].startswith("text/plain; version=0.0.4")


async def test_every_counter_of_the_account_has_its_metric() -> None:
    from uxk.bridges.metrics.families import MODULE, MODULE_TOTALS

    assert {family.key for family in MODULE_TOTALS} == set(COUNTERS)
    assert {family.key for family in MODULE} >= set(GAUGES)


async def test_what_there_is_too_much_of_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_file, "MODULES_MAX", 1)
    monkeypatch.setattr(snapshot_file, "PARTS_MAX", 1)
    monkeypatch.setattr(snapshot_file, "REASONS_MAX", 3)
    async with uxk.Kernel() as kernel:
        await busy(kernel)
        kernel.models.get("m0").site("another", check=lambda _: "")
        kernel.agents["null"].account.rejects.update({f"r{n}": n for n in range(10)})
        snapshot = take_snapshot(kernel)
    assert snapshot.left_out == {"modules": 1, "sites": 1}
    assert snapshot.modules[0].rejects == {"other": sum(range(8)), "r8": 8, "r9": 9}
    found = samples_of(render(snapshot)[0].decode())
    assert value(found, "uxk_metrics_left_out", what="modules") == 1
    assert value(found, "uxk_kernel_modules") == 2


@given(st.lists(st.integers(0, 10**11), max_size=200))
def test_latency_buckets_are_within_three_percent(values: list[int]) -> None:
    histogram = Histogram()
    for each in values:
        histogram.record(each)
    counts = histogram.cumulated(LATENCY_BOUNDS_NS)
    assert list(counts) == sorted(counts)
    for bound, count in zip(LATENCY_BOUNDS_NS, counts, strict=True):
        assert sum(v <= bound * 31 // 32 for v in values) <= count <= sum(v <= bound for v in values)


async def test_the_control_socket_gives_the_same(tmp_path: Path) -> None:
    async with uxk.Kernel(seed=7) as kernel, trio.open_nursery() as nursery:
        await busy(kernel)
        await nursery.start(ControlServer(kernel, tmp_path / "s").serve)
        async with ControlClient(tmp_path / "s") as client:
            assert await client.metrics() == take_snapshot(kernel)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("text", "address"),
    [("9100", ("127.0.0.1", 9100)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::1]:0", ("::1", 0)), ("host:80", ("host", 80))],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "host:", "::1:80", "70000", "-1", "80:x"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="expected PORT"):
        parse_address(text)


# --- the endpoint -------------------------------------------------------------------------------------------


class Endpoint:
    """A kernel with metrics on some port."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.kernel = uxk.Kernel(seed=7)
        self.server = MetricsServer(self.kernel, 0, host)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.server.port)

    async def ask(self, head: bytes) -> tuple[int, dict[str, str], bytes]:
        """Sends a request as it is; status, headers and body of the answer."""
        async with await self.connect() as stream:
            await stream.send_all(head)
            data = await everything(stream)
        top, _, body = data.partition(b"\r\n\r\n")
        lines = top.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        return int(lines[0].split()[1]), headers, body


async def everything(stream: trio.SocketStream) -> bytes:
    data = b""
    try:
        while part := await stream.receive_some(65536):
            data += part
    except trio.BrokenResourceError:  # closed with something of ours unread
        pass
    return data


def served(test: Any, host: str = "127.0.0.1") -> None:
    """Runs a coroutine function against an endpoint."""

    async def main() -> None:
        endpoint = Endpoint(host)
        async with endpoint.kernel, trio.open_nursery() as nursery:
            await nursery.start(endpoint.server.serve)
            with trio.fail_after(30):
                await test(endpoint)
            nursery.cancel_scope.cancel()

    trio.run(main, strict_exception_groups=True)


GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"


def test_get() -> None:
    async def test(end: Endpoint) -> None:
        status, headers, body = await end.ask(GET + b"\r\n")
        assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
        assert int(headers["content-length"]) == len(body) and b"uxk_kernel_info{" in body
        status, headers, body = await end.ask(GET + b"Accept: application/openmetrics-text;version=1.0.0\r\n\r\n")
        assert status == 200 and headers["content-type"].startswith("application/openmetrics-text")
        assert body.endswith(b"# EOF\n")
        status, headers, body = await end.ask(GET.replace(b"GET", b"HEAD") + b"\r\n")
        assert status == 200 and body == b"" and int(headers["content-length"]) > 1000

    served(test)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 405),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example:9100\r\n\r\n", 421),
        (b"GET /metrics HTTP/1.1\r\nHost: [::1]:9100\r\n\r\n", 200),
        (b"GET /metrics?x=1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.0\r\n\r\n", 200),
        (b"\x16\x03\x01 hello\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /" + b"x" * 40_000, 431),
        (GET + b"Accept: application/openmetrics-text;version=x;q=;,;;,\xff\r\n\r\n", 200),
    ],
)
def test_requests_of_all_kinds(request_: bytes, status: int) -> None:
    async def test(end: Endpoint) -> None:
        found, headers, _ = await end.ask(request_)
        assert found == status and headers["connection"] == "close"
        assert (await end.ask(GET + b"\r\n"))[0] == 200

    served(test)


def test_where_it_was_told_to_listen_any_name_will_do() -> None:
    async def test(end: Endpoint) -> None:
        assert (await end.ask(GET.replace(b"localhost", b"box.example") + b"\r\n"))[0] == 200

    served(test, "0.0.0.0")


def test_clients_that_say_nothing_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_file, "DEADLINE_S", 0.05)

    async def test(end: Endpoint) -> None:
        async with await end.connect() as silent, await end.connect() as slow:
            await slow.send_all(b"GET /met")
            assert await everything(silent) == b"" and await everything(slow) == b""
        monkeypatch.undo()
        assert (await end.ask(GET + b"\r\n"))[0] == 200
        while end.server.statistics().clients:
            await trio.lowlevel.checkpoint()

    served(test)


def test_too_many_clients_are_sent_away_and_the_kernel_goes_on() -> None:
    async def test(end: Endpoint) -> None:
        await end.kernel.modprobe("null")
        async with trio.open_nursery() as nursery:
            for _ in range(server_file.CLIENTS_MAX + 4):
                nursery.start_soon(_hold, await end.connect())
            port = end.kernel.open_port("null0", lambda _: None, "me")
            port.submit(uxk.Request(0, uxk.Op.NOP))
            await end.kernel.run()  # virtual time moves although they are there
            assert end.kernel.agents["null"].account.completed == 1
            while end.server.statistics().accepted < server_file.CLIENTS_MAX + 4:
                await trio.lowlevel.checkpoint()
            assert end.server.statistics()[0] == server_file.CLIENTS_MAX
            assert end.server.statistics().refused == 4
            nursery.cancel_scope.cancel()

    served(test)


async def _hold(stream: trio.SocketStream) -> None:
    async with stream:
        await trio.sleep_forever()


def test_many_scrapes_take_few_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_file, "FRESH_NS", 10**12)

    async def test(end: Endpoint) -> None:
        for _ in range(40):
            assert (await end.ask(GET + b"\r\n"))[0] == 200
        assert end.server.statistics()[2:] == (40, 0, 1)

    served(test)


async def test_an_address_that_cannot_be() -> None:
    async with uxk.Kernel() as kernel:
        with pytest.raises(UsageError, match=r"192\.0\.2\.1:0"):
            await MetricsServer(kernel, 0, "192.0.2.1").serve()
