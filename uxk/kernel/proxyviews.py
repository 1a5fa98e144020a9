"""What sysfs shows of a model proxy: ``/sys/kernel/ml/SUBSYSTEM/MODEL`` (R41).

``control`` takes the reference's four words, and nothing else; ``mode_override`` is the administrator's.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, get_args

from uxk import limits
from uxk.core.suggest import did_you_mean
from uxk.core.tree import Attribute, attribute_table
from uxk.errors import UsageError
from uxk.kernel.machine import Machine
from uxk.uapi.ml import CONTROL_COMMANDS, OVERRIDES, Reject

if TYPE_CHECKING:
    from uxk.kernel.proxy import MLModelProxy
    from uxk.kernel.proxydata import ProxyDataset
    from uxk.kernel.sites import ProxySite

ROOT: Final = "/sys/kernel/ml"
REASONS: Final[tuple[str, ...]] = get_args(Reject)
"""Files of the directory ``rejects``; a site's own reasons are counted in ``other``."""


def _number(name: str, read: Callable[[Any], int]) -> Attribute:
    return Attribute(name, show=lambda owner: str(read(owner)))


def _counters(*names: str) -> tuple[Attribute, ...]:
    return tuple(_number(name, partial(_counter, name)) for name in names)


def _counter(name: str, owner: Any) -> int:
    return int(getattr(owner, name))


def _control(proxy: MLModelProxy, text: str) -> None:
    from uxk.kernel.models import control

    command = CONTROL_COMMANDS.get(text)
    if command is None:
        known = ", ".join(CONTROL_COMMANDS)
        hint = did_you_mean(text, CONTROL_COMMANDS)
        raise UsageError(f"control: {text[:40]!r}{hint}; known: {known}", errno=errno.EOPNOTSUPP)
    control(proxy, command)


def _override(proxy: MLModelProxy, text: str) -> None:
    if text not in OVERRIDES:
        hint = did_you_mean(text, OVERRIDES)
        raise UsageError(f"mode_override: {text[:40]!r}{hint}; known: {', '.join(OVERRIDES)}")
    proxy.override(OVERRIDES[text], proxy.writer or "administrator")


def _timeline(proxy: MLModelProxy) -> str:
    """The newest changes that fit into a page."""
    lines: list[str] = []
    room = limits.SHOW_MAX_BYTES - 1
    for change in reversed(proxy.timeline):
        line = f"{change.now_ns} {change.epoch} {change.old.name} {change.new.name} {change.why}"
        room -= len(line.encode()) + 1
        if room < 0:
            break
        lines.append(line)
    return "\n".join(reversed(lines))


def _lines(items: dict[Any, Any]) -> str:
    return "\n".join(f"{key} {value}" for key, value in items.items())


MODEL: Final = attribute_table(
    _number("model_id", lambda p: p.id),
    Attribute("mode", show=lambda p: p.mode.name.lower()),
    Attribute("state", show=lambda p: p.state.name.lower()),
    Attribute("subsystem_state", show=lambda p: p.subsystem_state.name.lower()),
    _number("efficiency_ppm", lambda p: p.efficiency_ppm),
    _number("saved_ppm", lambda p: p.modes.ledger.saved_ppm),
    _number("loss_ppm", lambda p: p.modes.ledger.loss_ppm),
    _number("share_ppm", lambda p: p.modes.share_ppm),
    _number("epochs", lambda p: p.modes.epoch),
    _number("hints_received", lambda p: p.total("hints_received")),
    _number("hints_applied", lambda p: p.total("hints_applied")),
    _number("hints_expired", lambda p: p.total("expired")),
    _number("hints_superseded", lambda p: p.total("superseded")),
    Attribute("evidence", show=lambda p: p.modes.evidence),
    Attribute("watermarks", show=lambda p: _lines(p.modes.critical)),
    Attribute("mode_epochs", show=lambda p: _lines({m.name.lower(): n for m, n in p.mode_epochs.items()})),
    Attribute("timeline", show=_timeline),
    Attribute("system_state", show=lambda p: _lines(p.get_system_state())),
    Attribute("control", store=_control, mode=0o220),
    Attribute(
        "mode_override", store=_override,
        show=lambda p: "auto" if p.modes.override is None else p.modes.override.name.lower(),
    ),
)  # fmt: skip

REJECTS: Final = attribute_table(
    *(_number(reason, lambda p, reason=reason: p.rejects.get(reason, 0)) for reason in REASONS),  # type: ignore[misc]
    _number("other", lambda p: sum(count for reason, count in p.rejects.items() if reason not in REASONS)),
)

SITE: Final = attribute_table(
    *_counters(
        "generation", "units", "hinted_units", "depth", "share_ppm", "held", "hints_received", "hints_applied",
        "hints_refused", "expired", "superseded",
    ),
    Attribute("rejects", show=lambda site: _lines(dict(sorted(site.rejects.items())))),
)  # fmt: skip

DATASET: Final = attribute_table(
    Attribute("state", show=lambda d: d.state.name.lower()),
    Attribute("type", show=lambda d: d.describe().type.name.lower()),
    *_counters("id", "generation", "capacity", "lost"),
    _number("rows", lambda d: d.describe().rows),
    _number("appended", lambda d: d.rows),
    _number("allocated_size", lambda d: d.describe().allocated_size),
    _number("extracted_size", lambda d: d.extracted),
    Attribute("schema", show=lambda d: "\n".join(f"{name} {kind}" for name, kind in d.schema)),
)


def add_model(machine: Machine, proxy: MLModelProxy) -> None:
    """Puts a model into the tree."""
    machine.tree.add(proxy.path, proxy, MODEL)
    machine.tree.add(f"{proxy.path}/rejects", proxy, REJECTS)


def add_site(machine: Machine, proxy: MLModelProxy, site: ProxySite) -> None:
    """Puts a site of a model into the tree."""
    machine.tree.add(f"{proxy.path}/sites/{site.name}", site, SITE)


def add_dataset(machine: Machine, proxy: MLModelProxy, dataset: ProxyDataset) -> None:
    """Puts a dataset of a model into the tree."""
    machine.tree.add(f"{proxy.path}/datasets/{dataset.name}", dataset, DATASET)


def remove_model(machine: Machine, proxy: MLModelProxy) -> None:
    """Takes a model out, with all its parts."""
    if machine.tree.exists(proxy.path):
        machine.tree.remove(proxy.path)
