"""Connects a kernel to a log: every generation of every dataset of a running model, pushed or pulled.

It only looks: a run with a log has the event hash of the run without.  The kernel's part is a copy of the rows into
a queue (:mod:`uxk.bridges.datalog.pump`).
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from uxk.bridges.datalog.files import Recovery
from uxk.bridges.datalog.format import Description
from uxk.bridges.datalog.pump import Pump
from uxk.bridges.datalog.settings import DataLogSettings
from uxk.bridges.datalog.writer import LogWriter, Origin, Publication, check_itemsize
from uxk.core.tree import Attribute, attribute_table
from uxk.errors import KernelBug, UsageError
from uxk.kernel.kernel import Kernel

if TYPE_CHECKING:
    from uxk.kernel.proxy import MLModelProxy
    from uxk.kernel.proxydata import ProxyDataset

_UNFIT: Final = re.compile(r"[^\w.=,-]", re.ASCII)
PATH: Final = "/sys/kernel/datalog"
_LIBRARIES: Final = ("uxk", "numpy", "river", "trio", "msgspec")


def library_versions() -> dict[str, str]:
    """Of what the numbers in a log may depend on."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextmanager
def open_datalog(
    settings: DataLogSettings | None, kernel: Kernel, *, scenario: str = "", part: str = ""
) -> Iterator[DataLogRecorder | None]:
    """A recorder around a run; without settings, nothing.  ``part`` is a folder of its own under the directory."""
    if settings is None:
        yield None
        return
    if part:
        folder = Path(settings.dir, _UNFIT.sub("_", part)) if settings.dir else ""
        settings = msgspec.structs.replace(settings, dir=str(folder))
    with DataLogRecorder(kernel, settings, scenario=scenario) as recorder:
        yield recorder


class DataLogRecorder:
    """Logs one kernel's datasets until it is closed; a context manager, around the kernel's own.

    Raises InUse (EBUSY) if another process writes the log, UsageError, OSError; InUse, too, if this kernel has a log.
    """

    def __init__(self, kernel: Kernel, settings: DataLogSettings, *, scenario: str = "") -> None:
        if not settings.dir:
            raise UsageError("datalog: dir is empty: expected the log's directory")
        self.settings = settings.validate()
        self._machine = kernel.machine
        self._known: dict[int, tuple[Description, int] | None] = {}
        """By the dataset's number: None for those that are not wanted, or that the log cannot keep."""
        self._look: Callable[[MLModelProxy, ProxyDataset], object] = self._on_generation
        self._models = kernel.models
        origin = Origin(kernel.seed, kernel.machine.clock, scenario, library_versions())
        if kernel.sysfs.exists(PATH):
            raise UsageError("this kernel's datasets are logged already")
        self._pump = Pump(LogWriter(settings.dir, origin, settings))
        self._tree = kernel.sysfs
        self._tree.add(PATH, self, _TABLE)
        if self.recovery is not None:
            self._machine.log("warning", "datalog", f"{self.recovery}"[:1000])
        self._models.on_generation.append(self._look)

    @property
    def recovery(self) -> Recovery | None:
        """What had to be cut off of what the last writer left."""
        return self._pump.writer.recovery

    def statistics(self) -> dict[str, int | str]:
        """Counters since it began.  What depends on the host's disk differs from run to run."""
        pump, count = self._pump, self._pump.writer.counters
        return {
            "dir": str(self._pump.writer.folder.absolute()), "run": self._pump.writer.run,
            "batches": count.batches, "rows": count.rows, "bytes": count.bytes, "segments": count.segments,
            "queued_bytes": pump.queued_bytes, "dropped_batches": pump.dropped_batches,
            "dropped_rows": pump.dropped_rows, "lost_batches": count.lost_batches, "lost_rows": count.lost_rows,
            "retired_segments": count.retired_segments, "retired_bytes": count.retired_bytes, "syncs": count.syncs,
            "error": pump.error or count.error,
        }  # fmt: skip

    @property
    def complaint(self) -> str:
        """What did not get into the log, in one line; ``""`` if everything did."""
        pump, count = self._pump, self._pump.writer.counters
        lost = count.lost_batches
        if not lost and not count.error:
            return ""
        why = f" ({count.error})" if count.error else f", {pump.dropped_batches} of them for a full queue" * bool(lost)
        return f"dataset log {self._pump.writer.folder}: {lost} publications of {count.lost_rows} rows are lost{why}"

    def close(self) -> None:
        """Writes what waits, and ends the log; twice is once.  KernelBug for a defect of the log's own."""
        if self._look in self._models.on_generation:
            self._models.on_generation.remove(self._look)
            self._tree.remove(PATH)
        self._pump.close()
        if self._pump.error:
            raise KernelBug(f"dataset log {self._pump.writer.folder}: {self._pump.error}")

    def __enter__(self) -> DataLogRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside ---

    def _on_generation(self, proxy: MLModelProxy, dataset: ProxyDataset) -> None:
        if dataset.id not in self._known:
            self._known[dataset.id] = self._admit(proxy, dataset)
        known = self._known[dataset.id]
        if known is None:
            return
        description, itemsize = known
        self._pump.offer(Publication(
            description, itemsize, self._machine.now_ns, dataset.generation, dataset.lost_before,
            dataset.published.tobytes(),
        ))  # fmt: skip

    def _admit(self, proxy: MLModelProxy, dataset: ProxyDataset) -> tuple[Description, int] | None:
        found = Description(proxy.subsystem, proxy.name, dataset.name, dataset.schema, dataset.capacity)
        if not any(fnmatchcase(found.name, pattern) for pattern in self.settings.datasets):
            return None
        try:
            return found, check_itemsize(found)
        except UsageError as exc:
            self._machine.log("warning", "datalog", f"not logged: {exc}"[:1000])
            return None


def _figure(name: str) -> Attribute:
    # Host time decides about them, as about cpu_ns: people may read them, actors may not.
    return Attribute(name, show=lambda recorder: str(recorder.statistics()[name]), mode=0o400)


_TABLE: Final[Any] = attribute_table(*map(_figure, (
    "dir", "run", "batches", "rows", "bytes", "segments", "queued_bytes", "dropped_batches", "dropped_rows",
    "lost_batches", "lost_rows", "retired_segments", "retired_bytes", "syncs", "error",
)))  # fmt: skip
