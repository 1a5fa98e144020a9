"""A snapshot as metric families: stable names, base units (seconds, bytes, ratios), HELP and TYPE for each.

``prometheus_client`` formats them, as Prometheus text or as OpenMetrics; it comes with the extra ``metrics``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from uxk.errors import UsageError
from uxk.uapi.metrics import LATENCY_BOUNDS_NS, ModelSample, ModuleSample, PartSample, Snapshot
from uxk.uapi.ml import Mode

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

TEXT: Final = "text/plain"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0"
_NS: Final = 1e-9
_PPM: Final = 1e-6


class Family(NamedTuple):
    """A metric: its name without ``_total``, what it says, where its value is, and what to multiply it by."""

    name: str
    help: str
    key: str
    factor: float = 1


KERNEL: Final = (
    Family("uxk_kernel_time_seconds", "Time since boot on the kernel's clock.", "now_ns", _NS),
    Family("uxk_kernel_outstanding_requests", "Requests and commands without an answer.", "outstanding"),
    Family("uxk_kernel_runnable_modules", "Instances that wait for their turn.", "runnable"),
    Family("uxk_kernel_modules", "Instances loaded.", "modules"),
    Family("uxk_kernel_models", "ML model proxies.", "models"),
    Family("uxk_kernel_devices", "Devices registered.", "devices"),
    Family("uxk_kernel_arena_size_bytes", "Memory that instances can be granted altogether.", "arena_bytes"),
    Family("uxk_kernel_arena_granted_bytes", "Memory that instances and pools may use.", "granted_bytes"),
    Family("uxk_kernel_waits", "Edges of the wait-for graph.", "wait_edges"),
    Family("uxk_kmsg_followers", "Followers of the kernel log.", "kmsg_followers"),
)
"""Gauges of the kernel."""
KERNEL_TOTALS: Final = (
    Family("uxk_kernel_events", "Events of the event heap that were due.", "events"),
    Family("uxk_kernel_turns", "Turns of instances.", "turns"),
    Family("uxk_kernel_hashed_events", "Events in the event hash.", "hash_events"),
    Family("uxk_kernel_wait_cycles", "Cycles of the wait-for graph: deadlocks.", "wait_cycles"),
    Family("uxk_kernel_blocking_decisions", "Decisions that came to wait for an extension.", "blocking_decisions"),
    Family("uxk_kmsg_overwritten_records", "Records of the log that newer ones took the place of.", "kmsg_overwritten"),
    Family("uxk_kmsg_truncated_records", "Records of the log that were cut.", "kmsg_truncated"),
)
"""Counters of the kernel."""
MODULE_TOTALS: Final = (
    Family("uxk_module_requests", "Requests accepted for the instance.", "requests"),
    Family("uxk_module_completed_requests", "Requests answered.", "completed"),
    Family("uxk_module_failed_requests", "Requests answered with an error.", "failed"),
    Family("uxk_module_timed_out_requests", "Requests that missed their deadline.", "timeouts"),
    Family("uxk_module_deferred_requests", "Requests that had to wait for a place in the queue.", "deferred"),
    Family("uxk_module_submitted_requests", "Requests of the instance's own to others.", "submitted"),
    Family("uxk_module_crossings", "Crossings between kernel and instance.", "crossings"),
    Family("uxk_module_turns", "Turns of the instance.", "turns"),
    Family("uxk_module_cpu_seconds", "Host time spent in the instance.", "cpu_ns", _NS),
    Family("uxk_module_declared_seconds", "Thinking time that the instance declared.", "declared_ns", _NS),
    Family("uxk_module_charged_seconds", "Virtual time charged to the instance.", "charged_ns", _NS),
    Family(
        "uxk_module_throttlings", "Times that it had to wait, its share of the processor being used up.", "throttled"
    ),
    Family("uxk_module_hints", "Hints given.", "hints"),
    Family("uxk_module_log_lines", "Lines in the kernel log.", "log_lines"),
    Family("uxk_module_suppressed_log_lines", "Lines over its budget, which were dropped.", "log_suppressed"),
    Family("uxk_module_faults", "Crashes and hangs.", "faults"),
    Family("uxk_module_restarts", "Restarts.", "restarts"),
    Family("uxk_module_read_bytes", "Data read by clients of the instance.", "read_bytes"),
    Family("uxk_module_written_bytes", "Data written by clients of the instance.", "written_bytes"),
    Family("uxk_module_io_read_bytes", "Data that the instance read from others.", "io_read_bytes"),
    Family("uxk_module_io_written_bytes", "Data that the instance wrote to others.", "io_written_bytes"),
    Family("uxk_module_received_messages", "Entries received.", "messages_in"),
    Family("uxk_module_sent_messages", "Entries sent.", "messages_out"),
    Family("uxk_module_received_bytes", "Bytes of frames received.", "bytes_in"),
    Family("uxk_module_sent_bytes", "Bytes of frames sent.", "bytes_out"),
    Family("uxk_module_received_frames", "Frames received.", "batches_in"),
    Family("uxk_module_sent_frames", "Frames sent.", "batches_out"),
)
"""Counters of an instance: its account."""
MODULE: Final = (
    Family("uxk_module_inflight_requests", "Requests accepted and not answered.", "inflight"),
    Family("uxk_module_backlog_requests", "Those of them that wait for a place in the queue.", "backlog"),
    Family("uxk_module_staged_entries", "Entries that leave with its next turn.", "staged"),
    Family("uxk_module_staged_answers", "Answers to it that leave with its next turn.", "staged_answers"),
    Family("uxk_module_outstanding_commands", "Commands of its own that wait for an answer.", "commands"),
    Family("uxk_module_arena_bytes", "Arena memory held.", "arena_bytes"),
    Family("uxk_module_arena_max_bytes", "The most that it has held.", "arena_bytes_max"),
    Family("uxk_module_arena_limit_bytes", "Arena memory that it may hold.", "memory_bytes"),
    Family("uxk_module_snapshot_bytes", "Snapshots held.", "snapshot_bytes"),
    Family("uxk_module_queue_slots", "Places in its rings.", "queue_slots"),
    Family("uxk_module_locks", "Locks held.", "locks"),
    Family("uxk_module_pins", "Versions of snapshots pinned.", "pins"),
    Family("uxk_module_devices", "Devices of its own beside the first.", "devices"),
    Family("uxk_module_open_files", "Open files on its char devices.", "files"),
)
"""Gauges of an instance."""
RING_TOTALS: Final = (
    Family("uxk_queue_entries", "Entries that went through the ring.", "entries"),
    Family("uxk_queue_doorbells", "Doorbells rung.", "doorbells"),
    Family("uxk_queue_refusals", "Frames that found the ring full.", "full"),
)
RING: Final = (
    Family("uxk_queue_depth_entries", "Places in the ring.", "depth"),
    Family("uxk_queue_used_entries", "Entries in the ring.", "used"),
    Family("uxk_queue_used_max_entries", "The most there were.", "used_max"),
)
MODEL: Final = (
    Family("uxk_model_share_ratio", "Share of units that follows hints.", "share_ppm", _PPM),
    Family("uxk_model_efficiency_ratio", "By how much units with hints did better lately.", "efficiency_ppm", _PPM),
    Family("uxk_model_saved_ratio", "Saved over the run, of the default's KPI.", "saved_ppm", _PPM),
    Family("uxk_model_loss_ratio", "Loss against the default, of the default's KPI.", "loss_ppm", _PPM),
    Family("uxk_model_agents", "Agents attached.", "agents"),
    Family("uxk_model_critical_watermarks", "Watermarks that are passed.", "watermarks"),
)
SITE_TOTALS: Final = (
    Family("uxk_site_received_hints", "Hints received.", "hints_received"),
    Family("uxk_site_applied_hints", "Hints followed, and told what came of it.", "hints_applied"),
    Family("uxk_site_refused_hints", "Hints refused.", "hints_refused"),
    Family("uxk_site_expired_hints", "Hints that were too old when they were wanted.", "expired"),
    Family("uxk_site_superseded_hints", "Hints that newer ones took the place of.", "superseded"),
)
SITE: Final = (
    Family("uxk_site_generation", "Generation that hints must name.", "generation"),
    Family("uxk_site_units", "Experimental units.", "units"),
    Family("uxk_site_hinted_units", "Units that follow hints now.", "hinted_units"),
    Family("uxk_site_held_hints", "Hints that wait to be followed.", "held"),
)
DATASET: Final = (
    Family("uxk_dataset_generation", "Generations published.", "generation"),
    Family("uxk_dataset_rows", "Rows of the present generation.", "rows"),
    Family("uxk_dataset_appended_rows", "Rows of the next one so far.", "appended"),
    Family("uxk_dataset_lost_rows", "Rows that found no room in it.", "lost"),
    Family("uxk_dataset_capacity_rows", "Rows that a generation may have.", "capacity"),
)


class SnapshotCollector:
    """What ``prometheus_client`` collects from."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """All families."""
        return families(self._snapshot)


def render(snapshot: Snapshot, accept: str = TEXT) -> tuple[bytes, str]:
    """The text, and its content type: OpenMetrics for who accepts it, else Prometheus's.  UsageError without the
    extra ``metrics``."""
    try:
        from prometheus_client import exposition
    except ModuleNotFoundError:
        raise UsageError("metrics need prometheus_client: pip install 'uxk[metrics]'") from None
    try:
        encode, kind = exposition.choose_encoder(accept)
    except (ValueError, IndexError):  # whatever a client writes there
        encode, kind = exposition.choose_encoder("")
    return encode(SnapshotCollector(snapshot)), kind


def families(snapshot: Snapshot) -> Iterator[Metric]:
    """Every metric of a snapshot, those without a sample left out."""
    from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily

    about = {"version": snapshot.version, "clock": snapshot.clock, "seed": snapshot.seed}
    yield InfoMetricFamily("uxk_kernel", "The kernel.", about)
    yield from _plain(KERNEL, KERNEL_TOTALS, (), [((), snapshot.values)])
    levels = [((level,), {"records": count}) for level, count in snapshot.kmsg_by_level.items()]
    yield from _plain((), (Family("uxk_kmsg_records", "Records logged.", "records"),), ("level",), levels)
    yield from _modules(snapshot.modules)
    yield from _models(snapshot.models)
    left_out = GaugeMetricFamily(
        "uxk_metrics_left_out", "What there is beyond the bounds of a scrape.", labels=["what"]
    )
    for what in ("modules", "models", "sites", "datasets"):
        left_out.add_metric([what], snapshot.left_out.get(what, 0))
    yield left_out


_Rows: TypeAlias = Sequence[tuple[tuple[str, ...], dict[str, int]]]


def _plain(
    gauges: Iterable[Family], totals: Iterable[Family], labels: tuple[str, ...], rows: _Rows
) -> Iterator[Metric]:
    """One family for each table row, with a sample for each row of values."""
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    kinds: tuple[tuple[Iterable[Family], Callable[..., Any]], ...] = (
        (gauges, GaugeMetricFamily), (totals, CounterMetricFamily),
    )  # fmt: skip
    for table, make in kinds:
        for name, text, key, factor in table:
            family = make(name, text, labels=labels)
            for label_values, values in rows:
                value = values[key]
                family.add_metric(label_values, value if factor == 1 else value * factor)
            if rows:
                yield family


def _modules(modules: tuple[ModuleSample, ...]) -> Iterator[Metric]:
    from prometheus_client.metrics_core import HistogramMetricFamily, InfoMetricFamily, StateSetMetricFamily

    if not modules:
        return
    info = InfoMetricFamily("uxk_module", "A loaded instance.", labels=["module"])
    state = StateSetMetricFamily("uxk_module_state", "Where it is in its life.", labels=["module"])
    latency = HistogramMetricFamily(
        "uxk_module_request_latency_seconds", "From submission to answer, in kernel time.", labels=["module"]
    )
    for each in modules:
        info.add_metric([each.name], {
            "name": each.module, "version": each.version, "driver_class": each.driver_class,
            "placement": each.placement,
        })  # fmt: skip
        state.add_metric([each.name], {name: name == each.state for name in _STATES} | {each.state: True})
        bounds = [_seconds(bound) for bound in LATENCY_BOUNDS_NS]
        buckets = [*zip(bounds, each.latency_buckets, strict=True), ("+Inf", each.latency_count)]
        latency.add_metric([each.name], buckets, each.latency_sum_ns * _NS)
    yield from (info, state, latency)
    yield from _plain(MODULE, MODULE_TOTALS, ("module",), [((m.name,), m.counters | m.gauges) for m in modules])
    yield _rejects("uxk_module_rejects", "Refusals by reason.", ("module",), [((m.name,), m.rejects) for m in modules])
    rings = [((m.name, ring), values) for m in modules for ring, values in m.rings.items()]
    yield from _plain(RING, RING_TOTALS, ("module", "queue"), rings)


def _models(models: tuple[ModelSample, ...]) -> Iterator[Metric]:
    from prometheus_client.metrics_core import InfoMetricFamily, StateSetMetricFamily

    if not models:
        return
    info = InfoMetricFamily("uxk_model", "An ML model proxy.", labels=["model"])
    mode = StateSetMetricFamily("uxk_model_mode", "Who decides.", labels=["model"])
    for each in models:
        info.add_metric([each.name], {"subsystem": each.subsystem, "state": each.state})
        mode.add_metric([each.name], {name.name.lower(): name.name.lower() == each.mode for name in Mode})
    yield from (info, mode)
    yield from _plain(MODEL, (), ("model",), [((m.name,), m.values) for m in models])
    epochs = [((m.name, name), {"epochs": count}) for m in models for name, count in m.mode_epochs.items()]
    yield from _plain((), (Family("uxk_model_epochs", "Epochs by mode.", "epochs"),), ("model", "mode"), epochs)
    yield from _plain(SITE, SITE_TOTALS, ("model", "site"), _parts(models, "sites"))
    sites: _Rows = [((m.name, site.name), site.rejects) for m in models for site in m.sites]
    yield _rejects("uxk_site_rejects", "Refused hints by reason.", ("model", "site"), sites)
    yield from _plain(DATASET, (), ("model", "dataset"), _parts(models, "datasets"))


def _parts(models: tuple[ModelSample, ...], what: str) -> _Rows:
    found: list[tuple[ModelSample, PartSample]] = [(m, part) for m in models for part in getattr(m, what)]
    return [((model.name, part.name), part.values) for model, part in found]


def _rejects(name: str, text: str, labels: tuple[str, ...], rows: _Rows) -> Metric:
    from prometheus_client.metrics_core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=[*labels, "reason"])
    for values, rejects in rows:
        for reason, count in rejects.items():
            family.add_metric([*values, reason], count)
    return family


def _seconds(value_ns: int) -> str:
    """A bound as OpenMetrics wants it: the shortest text of the number, with a point."""
    return repr(value_ns / 1e9)


_STATES: Final = ("unformed", "coming", "live", "going")
