"""What ``/sys/fs/bpf/site/NAME`` shows of a decision site's policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from uxk.core.tree import Attribute, attribute_table
from uxk.errors import UsageError
from uxk.kernel.bpf.policy import PolicyPort
from uxk.kernel.bpf.views import ROOT, root

if TYPE_CHECKING:
    from uxk.kernel.bpf.registry import Bpf


def _shown(name: str, read: Callable[[PolicyPort], object]) -> Attribute:
    return Attribute(name, show=lambda port: str(read(port)))


def _schema(port: PolicyPort) -> str:
    return "\n".join(f"{each.name} {each.low} {each.high} {each.unit}".rstrip() for each in port.schema.features)


def _agreement(port: PolicyPort) -> str:
    made = port.candidate or port.injection
    if made is None:
        return ""
    comparison = made.comparison
    return f"{comparison.agreement_ppm} {comparison.judged} {made.step.value}"


def _candidate(port: PolicyPort) -> str:
    return "" if port.candidate is None else str(port.candidate.program.id)


def _control(port: PolicyPort, text: str) -> None:
    if text != "fallback":
        raise UsageError(f"control: {text[:40]!r}: expected 'fallback'")
    port.stop("by the administrator")


TABLE: Final = attribute_table(
    _shown("schema", _schema), _shown("verdict", lambda port: f"{port.verdict[0]} {port.verdict[1]}"),
    _shown("ranked", lambda port: int(port.ranked)), _shown("generation", lambda port: port.generation),
    _shown("policy", lambda port: "built-in" if port.current is None else port.current.id),
    _shown("candidate", _candidate),
    _shown("agreement", _agreement), _shown("decisions", lambda port: port.decisions),
    _shown("followed", lambda port: port.followed), _shown("charged_ns", lambda port: port.charged_ns),
    _shown("clamped", lambda port: port.clamped), _shown("refused", lambda port: port.refused),
    _shown("fallbacks", lambda port: port.fallbacks), _shown("last_end", lambda port: port.last_end),
    Attribute("control", store=_control),
)  # fmt: skip
"""``agreement``: ppm, decisions judged, and whether they are those of the shadow or of what is in force."""


def add(bpf: Bpf, port: PolicyPort) -> None:
    """Puts a site into the tree."""
    root(bpf)
    bpf.machine.tree.add(f"{ROOT}/{port.name}", port, TABLE)


def remove(bpf: Bpf, port: PolicyPort) -> None:
    """Takes it out again."""
    bpf.machine.tree.remove(f"{ROOT}/{port.name}")
