"""What the entries of the up queue mean: one small function each.

A service returns ``(result, payload)``, or None if the answer comes later or is not due.  An error it raises
becomes the answer's status; anything else that escapes is a bug of the kernel's, logged as such and answered
with EFAULT: nothing an extension writes raises in the kernel.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from uxk import limits
from uxk.core.caps import Capability
from uxk.core.kmsg import FACILITY_USER
from uxk.errors import CapabilityError, UsageError, UxkError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.ports import Port
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


class Forwarded(NamedTuple):
    """What is known of a request under way for a client extension."""

    cid: int
    """The client's own command id."""
    waits_for: str
    """What the wait-for graph says the client waits for; empty if it goes on meanwhile."""
    region: Capability | None
    """Memory of the client's, lent to the driver."""


class Forwarder:
    """The port of one client extension on one target: translates command ids both ways."""

    __slots__ = ("_target", "_under_way", "client", "port")

    def __init__(self, client: KernelAgent, target: KernelAgent) -> None:
        self.client = client
        self._target = target
        self._under_way: dict[int, Forwarded] = {}
        self.port: Port = target.open_port(client.name, self._on_completions, tagged=True)

    def submit(self, entry: e.Submit, start: int, device: int, region: Capability | None) -> None:
        """Passes a request on; the answer goes back under the client's own command id."""
        region_cap = 0 if region is None else region.id
        request = e.Request(
            0, entry.opcode, entry.payload, start + entry.offset, entry.length, region_cap, 0, device
        )  # fmt: skip
        machine, waits_for = self.client.machine, ""
        if region is not None:
            machine.arena.retain(region.start)
        try:
            self.port.submit(request)
        except UxkError:
            if region is not None:
                machine.arena.release(region.start)
            raise
        self.client.defer(entry.cid)
        if request.cid in self._target.requests.backlog:
            waits_for = f"queue slot {request.cid}"
        elif entry.wait:
            waits_for = f"request {request.cid}"
        self._under_way[request.cid] = Forwarded(entry.cid, waits_for, region)
        if waits_for:
            machine.wait(self.client.node, self._target.node, waits_for)

    def _on_completions(self, completions: list[e.Completion]) -> None:
        for completion in completions:
            cid = self._end(completion.cid)
            self.client.answer(cid, completion.status, completion.result, completion.payload)

    def _end(self, target_cid: int) -> int:
        """Takes back what was lent for a request; returns the client's command id."""
        machine = self.client.machine
        done = self._under_way.pop(target_cid)
        if done.waits_for:
            machine.waits.remove(self.client.node, self._target.node, done.waits_for)
        if done.region is not None:
            machine.caps.revoke(done.region.id)
            machine.arena.release(done.region.start)
        return done.cid

    def lent(self) -> list[CapId]:
        """Capabilities on the client's memory that the driver has now."""
        return [each.region.id for each in self._under_way.values() if each.region is not None]

    def close(self) -> None:
        """Closes the port; what is still under way is answered with ECANCELED."""
        self.port.close()
        for target_cid in list(self._under_way):
            self.client.answer(self._end(target_cid), errno.ECANCELED)


class Services:
    """Dispatch table of the up queue."""

    def __init__(
        self, machine: Machine, agents: dict[str, KernelAgent], devices: DeviceRegistry, chardevs: ChardevTable
    ) -> None:
        self._machine = machine
        self._agents = agents
        self._devices = devices
        self._chardevs = chardevs
        self._forwarders: dict[tuple[int, int], Forwarder] = {}
        self._table: dict[type, Callable[[KernelAgent, Any], Answer]] = {
            e.Submit: self._submit, e.Ready: self._ready, e.Log: self._log, e.Charge: self._charge,
            e.Open: self._open, e.Derive: self._derive, e.Revoke: self._revoke,
            e.TreeRead: self._tree_read, e.TreeWrite: self._tree_write,
            e.AddDevice: self._add_device, e.RemoveDevice: self._remove_device,
        }  # fmt: skip

    def extend(self, table: dict[type, Callable[[KernelAgent, Any], Answer]]) -> None:
        """Adds services that live in another file."""
        self._table.update(table)

    def serve(self, agent: KernelAgent, entry: e.Up) -> None:
        """Acts on one entry of ``agent``'s."""
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
            self._machine.log("crit", "kernel", f"BUG: {agent.name}: {type(entry).__name__}", bug="service")
            self._machine.log("debug", "kernel", traceback.format_exc())
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
        machine = self._machine
        kind = machine.caps.lookup(agent.id, CapId(entry.cap)).kind
        right = Rights.SUBMIT if kind != "chardev" else _CHARDEV_RIGHTS.get(entry.opcode, Rights.ALL)
        size_bytes = max(entry.length, len(entry.payload))
        cap = machine.caps.check(agent.id, CapId(entry.cap), kind, right, entry.offset, size_bytes)
        if kind == "device":
            device = self._devices.get(cap.target)
            target, number = device.agent, device.number
        elif kind == "chardev":
            target, number = self._chardevs.get(f"/dev/{cap.target}").agent, 0
        else:
            raise CapabilityError(f"{cap!r}: expected a capability of kind 'device' or 'chardev'")
        key = (agent.id, target.id)
        forwarder = self._forwarders.get(key)
        if forwarder is None:
            forwarder = self._forwarders[key] = Forwarder(agent, target)
        region = self._lend(agent, entry.region, target) if entry.region else None
        try:
            forwarder.submit(entry, cap.start, number, region)
        except UxkError:
            if region is not None:
                machine.caps.revoke(region.id)
            raise
        agent.account.submitted += 1
        return None

    def _lend(self, agent: KernelAgent, region_cap: int, target: KernelAgent) -> Capability:
        """A capability on memory of the client's, for the driver, for as long as the request lasts."""
        caps = self._machine.caps
        mine = caps.lookup(agent.id, CapId(region_cap))
        if caps.count(target.id) >= limits.CAPS_PER_HOLDER_MAX >> 1:  # its own grants must find room
            raise CapabilityError(f"{target.name}: too much memory is lent to it already", errno=errno.EMFILE)
        if mine.kind != "arena":
            raise CapabilityError(f"{mine!r}: expected a capability of kind 'arena'")
        lent = caps.derive(agent.id, mine.id, target.id, mine.rights & (Rights.READ | Rights.WRITE))
        return caps.lookup(target.id, lent)

    def _close_unused(self) -> None:
        """Closes connections to drivers of which the client holds no device any more: some may have been revoked."""
        for key, forwarder in list(self._forwarders.items()):
            client, target = forwarder.client, forwarder.port.target
            held = {(cap.kind, cap.target) for cap in self._machine.caps.held(client.id) if cap.depth}
            names = {("device", name) for name in target.devices} | {("chardev", name) for name in target.chardevs}
            bound = any(client.name in device.bound for device in target.devices.values())
            if not bound and not held & names:
                self._forwarders.pop(key).close()

    def lent_to(self, agent: KernelAgent) -> set[CapId]:
        """Capabilities on clients' memory that the instance has for requests under way."""
        ports = (forwarder for key, forwarder in self._forwarders.items() if key[1] == agent.id)
        return {cap for forwarder in ports for cap in forwarder.lent()}

    def forget(self, agent: KernelAgent, *, gone: bool) -> None:
        """Closes what ``agent`` has open elsewhere; when it is ``gone``, also what others have open on it."""
        for key in [key for key in self._forwarders if key[0] == agent.id or (gone and key[1] == agent.id)]:
            self._forwarders.pop(key).close()

    def _add_device(self, agent: KernelAgent, entry: e.AddDevice) -> Answer:
        return self._devices.add(agent, entry.name, entry.properties).number, b""

    def _remove_device(self, agent: KernelAgent, entry: e.RemoveDevice) -> Answer:
        device = self._devices.get(entry.name)
        if device.agent is not agent:
            raise CapabilityError(f"device {entry.name!r} belongs to {device.agent.name}")
        self._devices.remove(device)
        return _DONE

    # --- capabilities ---

    def _open(self, agent: KernelAgent, entry: e.Open) -> Answer:
        caps = self._machine.caps
        rights = _rights(entry.rights)
        if entry.kind not in _OPENABLE:
            raise UsageError(f"open: unknown kind {entry.kind!r}; known: {', '.join(sorted(_OPENABLE))}")
        if entry.kind == "device":
            self._devices.get(entry.target)
        root = caps.find(agent.id, entry.kind, entry.target, rights)
        if root is None:
            raise CapabilityError(
                f"{entry.kind}:{entry.target} with {rights!r}: not among the capabilities of {agent.name}'s manifest"
            )
        cap = caps.narrow(agent.id, root, entry.target, rights)
        return cap, b""

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
        self._close_unused()
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
