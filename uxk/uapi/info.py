"""What lsmod, modinfo, depmod and dmesg tell, as data: the same for the API, the control socket and ``--json``."""

from __future__ import annotations

from msgspec import Struct


class ModuleRow(Struct, frozen=True, omit_defaults=True):
    """One line of ``lsmod``."""

    name: str
    size_bytes: int
    used_by: tuple[str, ...]
    state: str
    version: str
    driver_class: str
    placement: str = "task"
    """``"task"``: in the kernel's process; ``"process"``: in one of its own."""
    pid: int = 0
    """That process, while it has one."""


class Parameter(Struct, frozen=True):
    """A parameter as ``modinfo`` shows it; ``default_text`` is ``"required"`` if there is none."""

    name: str
    type_text: str
    default_text: str
    help: str
    unit: str
    writable: bool
    constraint_text: str


class ModuleInfo(Struct, frozen=True):
    """What ``modinfo`` shows."""

    filename: str
    name: str
    version: str
    author: str
    license: str
    description: str
    kind: str
    driver_class: str
    alias: tuple[str, ...]
    depends: tuple[str, ...]
    softdep: str
    capabilities: tuple[str, ...]
    placement: str
    memory_bytes: int
    memory_params: tuple[str, ...]
    """What comes on top with parameters: their names, or ``"size*5/512 when integrity=Y"``."""
    queue_depth: int
    sandbox: tuple[str, ...]
    """What it asks of its process, if that is its own: ``"network"``, ``"read {tls_cert}"``."""
    parameters: tuple[Parameter, ...]


class Dependencies(Struct, frozen=True):
    """What ``depmod`` would write: texts of modules.dep and modules.alias, and what is wrong."""

    modules_dep: str
    modules_alias: str
    problems: tuple[str, ...]


class Record(Struct, frozen=True, gc=False):
    """One record; ``time_ns`` is kernel time.  Do not change ``fields``."""

    seq: int
    time_ns: int
    level: int
    facility: int
    source: str
    text: str
    fields: dict[str, str | int]

    @property
    def prefix(self) -> int:
        """Facility and level in one number, as syslog has them."""
        return self.facility << 3 | self.level
