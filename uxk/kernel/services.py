"""What the entries of the up queue mean: one small function each.

A service returns ``(result, payload)``, or None if the answer comes later or is not due.  An error it raises
becomes the answer's status; anything else that escapes is a bug of the kernel's, logged as such and answered
with EFAULT: nothing an extension writes raises in the kernel.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from uxk import limits
from uxk.core.kmsg import FACILITY_USER
from uxk.errors import CapabilityError, UsageError, UxkError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.forward import Forwarders
from uxk.kernel.ports import Gate
from uxk.uapi import entries as e
from uxk.uapi.ids import CapId
from uxk.uapi.rights import Rights

if TYPE_CHECKING:
    from uxk.kernel.chardev import ChardevTable
    from uxk.kernel.devices import DeviceRegistry
    from uxk.kernel.machine import Machine

Answer: TypeAlias = tuple[int, bytes] | None
_OPENABLE: Final = frozenset({"device", "lock", "snapshot", "sysctl", "sysfs", "kmsg", "chardev", "model", "site"})
_DONE: Final[Answer] = (0, b"")
_CHARDEV_RIGHTS: Final = {
    int(e.Op.READ): Rights.READ, int(e.Op.WRITE): Rights.WRITE, int(e.Op.IOCTL): Rights.IOCTL,
    int(e.Op.OPEN): Rights.NONE, int(e.Op.RELEASE): Rights.NONE,
}  # fmt: skip


class Services:
    """Dispatch table of the up queue."""

    def __init__(
        self, machine: Machine, agents: dict[str, KernelAgent], devices: DeviceRegistry, chardevs: ChardevTable
    ) -> None:
        self._machine = machine
        self._agents = agents
        self._devices = devices
        self._chardevs = chardevs
        self.forwarders = Forwarders(machine)
        self._table: dict[type, Callable[[KernelAgent, Any], Answer]] = {
            e.Submit: self._submit, e.Ready: self._ready, e.Log: self._log, e.Charge: self._charge,
            e.Open: self._open, e.Derive: self._derive, e.Revoke: self._revoke,
            e.TreeRead: self._tree_read, e.TreeWrite: self._tree_write,
            e.AddDevice: self._add_device, e.RemoveDevice: self._remove_device,
        }  # fmt: skip

    def extend(self, table: dict[type, Callable[[KernelAgent, Any], Answer]]) -> None:
        """Adds services that live in another file."""
        self._table.update(table)

    def serve(self, agent: KernelAgent, entries: Sequence[e.Up]) -> None:
        """Acts on what ``agent`` says, in order, until that has ended it: the dead are not heard."""
        incarnation, count, at = agent.incarnation, len(entries), 0
        while at < count and agent.incarnation == incarnation:
            entry = entries[at]
            taken = self._submit_run(agent, entries, at, entry) if type(entry) is e.Submit and at + 1 < count else 0
            if taken > 0:
                at += taken
                continue
            for entry in entries[at : at + max(1, -taken)]:
                if agent.incarnation == incarnation:
                    self._serve_one(agent, entry)
            at += max(1, -taken)

    def _serve_one(self, agent: KernelAgent, entry: e.Up) -> None:
        cid: int | None = getattr(entry, "cid", None)
        status, result, payload = 0, 0, b""
        if cid is not None and cid in agent.commands:  # an answer would be taken for that of the first
            agent.account.reject("duplicate_cid")
            agent.complain(f"{type(entry).__name__}: command {cid} is outstanding already", errno.EALREADY)
            return
        try:
            if cid is not None and len(agent.commands) >= agent.queues.up.depth:
                raise UsageError(f"{agent.queues.up.depth} commands are outstanding already", errno=errno.EAGAIN)
            answer = self._table[type(entry)](agent, entry)
            if answer is None:
                return
            result, payload = answer
        except (UxkError, OSError) as exc:
            status = exc.errno or errno.EIO
            payload = str(exc).encode()[: limits.SHOW_MAX_BYTES]
            agent.account.reject(_reason(exc))
            agent.complain(f"{type(entry).__name__}: {exc}", status)
        except Exception:
            self._bug(agent, entry)
            status = errno.EFAULT
        if cid is not None:
            agent.answer(cid, status, result, payload)

    # --- life ---

    def _ready(self, agent: KernelAgent, entry: e.Ready) -> Answer:
        agent.on_ready()
        return None

    def _charge(self, agent: KernelAgent, entry: e.Charge) -> Answer:
        return None  # booked when the frame was read

    def _log(self, agent: KernelAgent, entry: e.Log) -> Answer:
        limit = agent.log_limit
        if not limit.allow(self._machine.now_ns):
            agent.account.log_suppressed += 1
            if limit.suppressed == 1:  # the moment of excess
                agent.complain(f"more than {limit.burst} log lines in {limit.interval_ns} ns", errno.EDQUOT)
            return None
        suppressed = limit.take_suppressed()
        if suppressed:
            self._machine.log("warning", agent.name, f"{suppressed} lines suppressed")
        agent.account.log_lines += 1
        self._machine.kmsg.log(
            self._machine.now_ns, entry.level, agent.name, entry.text, entry.fields, facility=FACILITY_USER
        )
        return None

    # --- devices ---

    def _submit(self, agent: KernelAgent, entry: e.Submit) -> Answer:
        """I/O on a device or a char device; the capability says on which bytes of it."""
        caps, size_bytes = self._machine.caps, max(entry.length, len(entry.payload))
        gate: Gate
        cap = caps.peek(agent.id, CapId(entry.cap), "device", Rights.SUBMIT)
        if cap is None or entry.offset + size_bytes > cap.length:  # a char device, or an error to be told
            kind = caps.lookup(agent.id, CapId(entry.cap)).kind
            right = Rights.SUBMIT if kind != "chardev" else _CHARDEV_RIGHTS.get(entry.opcode, Rights.ALL)
            cap = caps.check(agent.id, CapId(entry.cap), kind, right, entry.offset, size_bytes)
        if cap.kind == "device":
            device = self._devices.get(cap.target)
            target, number, gate = device.agent, device.number, device.gate
        elif cap.kind == "chardev":
            target, number = self._chardevs.get(f"/dev/{cap.target}").agent, 0
            gate = target
        else:
            raise CapabilityError(f"{cap!r}: expected a capability of kind 'device' or 'chardev'")
        self.forwarders.get(agent, target, gate).submit(entry, cap.start, number)
        agent.account.submitted += 1
        return None

    def _submit_run(self, agent: KernelAgent, entries: Sequence[e.Up], at: int, first: e.Submit) -> int:
        """Passes requests that follow each other on to one device, together; returns how many, as ``submit_run``.

        What is not plain about one of them ends the run, and is for :meth:`_serve_one` to look at.
        """
        cap = self._machine.caps.peek(agent.id, CapId(first.cap), "device", Rights.SUBMIT)
        device = None if cap is None else self._devices.devices.get(cap.target)
        if cap is None or device is None:
            return 0
        forwarder = self.forwarders.get(agent, device.agent, device.gate)
        most = agent.queues.up.depth - len(agent.commands)
        try:
            count = forwarder.submit_run(entries[at : at + most] if most > 0 else (), cap, device.number)
        except Exception:
            self._bug(agent, first)
            return -1
        if count > 0:
            agent.account.submitted += count
        return count

    def _bug(self, agent: KernelAgent, entry: e.Up) -> None:
        """Nothing an extension writes raises in the kernel: what does is told, and contained."""
        self._machine.log("crit", "kernel", f"BUG: {agent.name}: {type(entry).__name__}", bug="service")
        self._machine.log("debug", "kernel", traceback.format_exc())

    def _add_device(self, agent: KernelAgent, entry: e.AddDevice) -> Answer:
        return self._devices.add(agent, entry.name, entry.properties).number, b""

    def _remove_device(self, agent: KernelAgent, entry: e.RemoveDevice) -> Answer:
        device = self._devices.get(entry.name)
        if device.agent is not agent:
            raise CapabilityError(f"device {entry.name!r} belongs to {device.agent.name}")
        if agent.aside is not None and entry.name in agent.aside.properties:
            raise UsageError(f"device {entry.name!r}: the build before it may come back to it", errno=errno.EBUSY)
        self._devices.remove(device)
        return _DONE

    # --- capabilities ---

    def _open(self, agent: KernelAgent, entry: e.Open) -> Answer:
        caps = self._machine.caps
        rights = _rights(entry.rights)
        if entry.kind not in _OPENABLE:
            raise UsageError(f"open: unknown kind {entry.kind!r}; known: {', '.join(sorted(_OPENABLE))}")
        payload = b""
        if entry.kind == "device":
            payload = self._devices.get(entry.target).agent.name.encode()
        root = caps.find(agent.id, entry.kind, entry.target, rights)
        if root is None:
            raise CapabilityError(
                f"{entry.kind}:{entry.target} with {rights!r}: not among the capabilities of {agent.name}'s manifest"
            )
        cap = caps.narrow(agent.id, root, entry.target, rights)
        return cap, payload

    def _derive(self, agent: KernelAgent, entry: e.Derive) -> Answer:
        other = self._agents.get(entry.to)
        if other is None or other.host is None:
            raise UsageError(f"derive: no live instance {entry.to!r}", errno=errno.ESRCH)
        cap = self._machine.caps.derive(
            agent.id, CapId(entry.cap), other.id, _rights(entry.rights), start=entry.start, length=entry.length
        )
        other.event("capability", agent.name, b"", cap)
        return cap, b""

    def _revoke(self, agent: KernelAgent, entry: e.Revoke) -> Answer:
        count = self._machine.caps.revoke_by(agent.id, CapId(entry.cap))
        self.forwarders.close_unused()
        return count, b""

    # --- tree and logs ---

    def _tree_read(self, agent: KernelAgent, entry: e.TreeRead) -> Answer:
        return 0, self._machine.tree.read(entry.path, root=False).encode()

    def _tree_write(self, agent: KernelAgent, entry: e.TreeWrite) -> Answer:
        path = self._machine.tree.canonical(entry.path)  # what the capability is checked for is what is written
        kind, target = ("sysctl", path[10:]) if path.startswith("/proc/sys/") else ("sysfs", path)
        if self._machine.caps.find(agent.id, kind, target, Rights.WRITE) is None:
            raise CapabilityError(f"{path}: needs the capability {kind}:{target}:write")
        self._machine.tree.write(path, entry.value, writer=agent.name)
        return _DONE


def _rights(bits: int) -> Rights:
    if bits & ~int(Rights.ALL):
        raise UsageError(f"rights {bits:#x}: unknown bits {bits & ~int(Rights.ALL):#x}")
    return Rights(bits)


def _reason(exc: Exception) -> str:
    number = getattr(exc, "errno", None) or errno.EIO
    return errno.errorcode.get(number, "EIO").lower()
