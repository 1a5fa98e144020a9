"""A run as a Perfetto trace: parsed back, it holds what the run did, and follows the rules of the format."""

from __future__ import annotations

import io
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

import uxk
from uxk.bridges.trace.packets import TraceWriter
from uxk.bridges.trace.recorder import TraceRecorder
from uxk.errors import UsageError
from uxk.scenario import ClosedLoop, Load, Scenario
from uxk.scenario.find import open_scenario

pb = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")

MS = 1_000_000
SCENARIO = Scenario(
    name="traced",
    modules=(Load(name="null", params={"latency_ns": "100us", "size": "1MiB"}),),
    workloads=(ClosedLoop(device="null0", depth=4, count=200),),
)


class Parsed:
    """A trace, checked: tracks come before their events, times never go back, slices nest, arrows have both ends."""

    def __init__(self, path: Path) -> None:
        trace = pb.Trace()
        trace.ParseFromString(path.read_bytes())
        self.tracks: dict[int, Any] = {}
        self.events: dict[str, list[Any]] = defaultdict(list)
        self.begun: Counter[int] = Counter()
        self.ended: Counter[int] = Counter()
        self.slices = 0
        first = trace.packet[0]
        assert first.sequence_flags == pb.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        last_ns, stacks = 0, defaultdict(list)
        for packet in trace.packet:
            assert packet.trusted_packet_sequence_id == first.trusted_packet_sequence_id
            if packet.HasField("track_descriptor"):
                descriptor = packet.track_descriptor
                assert descriptor.uuid not in self.tracks
                assert not descriptor.parent_uuid or descriptor.parent_uuid in self.tracks
                self.tracks[descriptor.uuid] = descriptor
            elif packet.HasField("track_event"):
                assert packet.timestamp >= last_ns
                last_ns = packet.timestamp
                self._check(packet, stacks)
        assert not any(stacks.values()), "slices that never end"
        assert not self.ended - self.begun, "arrows that end and never began"

    def _check(self, packet: Any, stacks: dict[int, list[str]]) -> None:
        event = packet.track_event
        track = self.tracks[event.track_uuid]
        kind = event.type
        assert (kind == pb.TrackEvent.TYPE_COUNTER) == track.HasField("counter")
        if kind == pb.TrackEvent.TYPE_SLICE_BEGIN:
            stacks[track.uuid].append(event.name)
            assert len(stacks[track.uuid]) == 1, "a lane has one request at a time"
            self.slices += 1
        elif kind == pb.TrackEvent.TYPE_SLICE_END:
            stacks[track.uuid].pop()
        self.begun.update(event.flow_ids)
        self.ended.update(event.terminating_flow_ids)
        self.events[self.name_of(track)].append(packet)

    def name_of(self, track: Any) -> str:
        """``process/track``."""
        parent = self.tracks.get(track.parent_uuid)
        return f"{parent.process.process_name}/{track.name}" if parent else track.process.process_name

    def names(self, track: str) -> list[str]:
        """Names of the events of a track."""
        return [packet.track_event.name for packet in self.events[track]]

    def values(self, track: str) -> list[int]:
        """Values of a counter."""
        return [packet.track_event.counter_value for packet in self.events[track]]


def traced(path: Path, scenario: Scenario = SCENARIO, **settings: Any) -> tuple[Parsed, Any]:
    result = uxk.run(scenario, trace=path, **settings)
    return Parsed(path), result


def test_requests_are_slices_with_arrows_from_submission_to_answer(tmp_path: Path) -> None:
    trace, result = traced(tmp_path / "t")
    assert result.ok
    assert trace.slices == 200
    began = [p for p in trace.events["null/requests"] if p.track_event.type == pb.TrackEvent.TYPE_SLICE_BEGIN]
    assert {p.track_event.name for p in began} == {"READ", "WRITE"}
    submitted = [p for name, ps in trace.events.items() if "client" in name for p in ps if p.track_event.flow_ids]
    assert sum(len(p.track_event.flow_ids) for p in submitted) == 200
    assert sum(trace.ended.values()) == 200 and set(trace.ended) <= set(trace.begun)
    assert set(trace.begun.values()) == {2}  # at the client, and at the slice


def test_queue_depths_are_counters(tmp_path: Path) -> None:
    trace, _ = traced(tmp_path / "t")
    depths = trace.values("null/in flight")
    assert max(depths) == 4 and depths[-1] == 0 and min(depths) >= 0
    assert trace.values("null/backlog") == [0]


def test_the_log_is_in_it(tmp_path: Path) -> None:
    trace, _ = traced(tmp_path / "t")
    names = trace.names("kernel/kmsg")
    assert names[0] == "kernel: booted, seed 0, virtual clock" and names[-1] == "kernel: shut down"
    assert "start null" in trace.names("kernel/events")


def test_same_seed_same_bytes_and_the_run_is_the_same_without(tmp_path: Path) -> None:
    _, first = traced(tmp_path / "a")
    traced(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert uxk.run(SCENARIO).event_hash == first.event_hash
    result = uxk.run(SCENARIO, trace=tmp_path / "c", out=tmp_path / "out")
    assert result.event_hash == first.event_hash
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()
    assert (tmp_path / "out" / "events.jsonl").read_bytes().count(b"\n") >= result.events


def test_crashes_end_slices_and_reissued_requests_begin_anew(tmp_path: Path) -> None:
    scenario, _ = open_scenario("crash-under-load")
    scenario = msgspec.structs.replace(scenario, workloads=tuple(
        msgspec.structs.replace(each, count=8000) for each in scenario.workloads
    ), checks=())  # fmt: skip
    trace, result = traced(tmp_path / "t", scenario)
    assert result.ok
    assert "crash null" in trace.names("kernel/events")
    assert trace.slices > 8000
    ends = Counter(
        p.track_event.debug_annotations[0].string_value
        for p in trace.events["null/requests"] if p.track_event.type == pb.TrackEvent.TYPE_SLICE_END
    )  # fmt: skip
    assert ends["done"] == 8000 and ends["crash"] == trace.slices - 8000


def test_requests_that_time_out_end_when_they_do(tmp_path: Path) -> None:
    class Deaf(uxk.Extension):
        """Answers nothing."""

        manifest = uxk.Manifest(
            name="deaf", version="1.0", license="Apache-2.0", kind="driver", driver_class="misc",
            watchdog=uxk.Watchdog(request_timeout_ns=2 * MS, timeouts_max=100),
        )  # fmt: skip

        def on_batch(self, ctx: uxk.Context, requests: list[uxk.Request]) -> None:
            pass

    async def main() -> None:
        kernel = uxk.Kernel()
        with TraceRecorder(tmp_path / "t", kernel):
            async with kernel:
                await kernel.insmod(Deaf)
                port = kernel.open_port("deaf0", lambda _: None, "me")
                port.submit(uxk.Request(0, uxk.Op.CALL))
                await kernel.sleep_ns(10 * MS)

    trio.run(main)
    trace = Parsed(tmp_path / "t")
    ends = [p for p in trace.events["deaf/requests"] if p.track_event.type == pb.TrackEvent.TYPE_SLICE_END]
    assert [p.track_event.debug_annotations[0].string_value for p in ends] == ["ETIMEDOUT"]
    assert 2 * MS <= ends[0].timestamp < 3 * MS
    assert trace.names("kernel/client me") == ["submit 1", "complete 1"]


async def test_hints_and_modes_are_instants(tmp_path: Path) -> None:
    class Adviser(uxk.MLAgent):
        """Gives one hint for each dataset."""

        manifest = uxk.Manifest(name="adviser", version="1.0", license="Apache-2.0")
        model = "m0"
        sites = ("m0.site",)

        def recommend(self, ctx: uxk.Context, site: str) -> bytes:
            return b"x" if ctx.now_ns < 2 * MS else b"bad"

    kernel = uxk.Kernel()
    with TraceRecorder(tmp_path / "t", kernel):
        async with kernel:
            proxy = kernel.create_model("test", "m0")
            rows = proxy.dataset("rows", [("a", "u1")], capacity=4)
            site = proxy.site("m0.site", check=lambda payload: "" if payload == b"x" else "malformed")
            await kernel.insmod(Adviser)
            for _ in range(3):
                await kernel.sleep_ns(MS)
                rows.append([(1,)])
                rows.publish()
            await kernel.run()
            assert site.hints_received == 3
            proxy.override(uxk.Mode.EMERGENCY)
    trace = Parsed(tmp_path / "t")
    assert trace.names("adviser/hints") == ["m0.site"] * 3
    assert trace.names("kernel/hints") == ["m0.site: taken", "m0.site: malformed", "m0.site: malformed"]
    assert "test/m0: EMERGENCY -> LEARNING" in trace.names("kernel/modes")
    assert trace.values("kernel/mode of test/m0")[:3] == [1, 2, 1]
    arrows = [p.track_event.flow_ids[0] for p in trace.events["adviser/hints"]]
    assert [p.track_event.terminating_flow_ids[0] for p in trace.events["kernel/hints"]] == arrows


def test_a_full_trace_says_so_and_stays_whole(tmp_path: Path) -> None:
    async def main() -> int:
        kernel = uxk.Kernel()
        with TraceRecorder(tmp_path / "t", kernel, packets_max=50) as recorder:
            async with kernel:
                await kernel.modprobe("null")
                port = kernel.open_port("null0", lambda _: None, "me")
                for _ in range(30):
                    port.submit(uxk.Request(0, uxk.Op.NOP))
                await kernel.run()
        return recorder.events

    assert trio.run(main) == 50
    trace = Parsed(tmp_path / "t")
    assert trace.names("kernel/events")[-1].startswith("truncated: ")


async def test_a_disk_that_fills_up_ends_the_trace_and_not_the_run(tmp_path: Path) -> None:
    class Full:
        """A file on a full disk."""

        closed = False

        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            self.closed = True

    kernel = uxk.Kernel(seed=1)
    recorder = TraceRecorder(tmp_path / "t", kernel)
    recorder._file.close()
    full: Any = Full()
    recorder._file = full
    recorder._writer._file = full
    async with kernel:
        await kernel.modprobe("null")
    with pytest.raises(UsageError, match="No space left on device"):
        recorder.close()


async def test_numbers_of_any_size_are_notes(tmp_path: Path) -> None:
    kernel = uxk.Kernel()
    with TraceRecorder(tmp_path / "t", kernel):
        async with kernel:
            kernel.machine.log("info", "test", "big", number=(1 << 64) - 1)
    packet = Parsed(tmp_path / "t").events["kernel/kmsg"][1]
    notes = {note.name: note.string_value for note in packet.track_event.debug_annotations}
    assert notes["field_number"] == str((1 << 64) - 1)


async def test_it_must_come_before_modules(tmp_path: Path) -> None:
    async with uxk.Kernel() as kernel:
        await kernel.modprobe("null")
        with pytest.raises(UsageError, match="modules are loaded already"):
            TraceRecorder(tmp_path / "t", kernel)


def test_a_file_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        uxk.run(SCENARIO, trace=tmp_path / "none" / "t")


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "perfetto.trace_builder.proto_builder", None)
    with pytest.raises(UsageError, match=r"pip install 'uxk\[trace\]'"):
        TraceWriter(io.BytesIO())
