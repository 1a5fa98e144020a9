"""Requests of extensions on the devices of others: command ids are translated both ways, memory is lent.

A client has one connection for each target and gate.  What it has handed to the driver beforehand (a registered
buffer, io_uring's word) is used as it is; other memory is lent for as long as a request lasts.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from uxk import limits
from uxk.core.caps import Capability
from uxk.errors import CapabilityError, UxkError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.ports import Gate, GatePort
from uxk.kernel.requests import data_ops, moved, moved_bytes
from uxk.uapi.entries import Completion, Op, Request, Submit, Up
from uxk.uapi.ids import CapId, InstanceId
from uxk.uapi.rights import Rights

if TYPE_CHECKING:
    from uxk.kernel.machine import Machine

_READ: Final = int(Op.READ)
_WRITE: Final = int(Op.WRITE)
_DATA: Final = Rights.READ | Rights.WRITE
_NEEDS: Final = {_READ: int(Rights.WRITE), _WRITE: int(Rights.READ)}
"""What the driver does with the memory: a READ of the device writes there."""


class Registered:
    """Memory that the client has handed to the driver for good.  The arena keeps it while requests refer to it."""

    __slots__ = ("begin", "cap", "end", "inflight", "rights")

    def __init__(self, mine: Capability, handed: Capability) -> None:
        self.cap = handed
        self.begin = handed.start - mine.start
        """Where the driver's part begins in the client's, and where it ends."""
        self.end = self.begin + handed.length
        self.rights = int(handed.rights)
        self.inflight = 0


class Hold(NamedTuple):
    """What ends with one request."""

    known: Registered | None
    lent: Capability | None
    """Memory of the client's, lent to the driver."""
    waits_for: str
    """What the wait-for graph says the client waits for; empty if it goes on meanwhile."""


_NO_HOLD: Final = Hold(None, None, "")


class Forwarder:
    """The port of one client extension at one gate of a target."""

    __slots__ = (
        "_data_ops", "_early", "_holds", "_machine", "_regions", "_submitting", "_tag", "_under_way", "client",
        "direct", "gate", "port", "target",
    )  # fmt: skip

    def __init__(self, client: KernelAgent, target: KernelAgent, gate: Gate) -> None:
        self.client = client
        self.target = target
        self.gate = gate
        self.direct = gate is target
        """Whether nothing stands between client and driver."""
        self._machine = client.machine
        self._data_ops = data_ops(target.manifest)
        self._under_way: dict[int, Submit] = {}
        self._holds: dict[int, Hold | Registered] = {}
        """By the target's command id: what must be let go of with the answer."""
        self._regions: dict[int, Registered] = {}
        """Registered buffers by the client's capability."""
        self._submitting = False
        self._early: list[Completion] = []
        self.port: GatePort = gate.open_port(client.name, self._on_completions, tagged=not self.direct)
        self._tag = self.port.id
        """What requests carry, so that the driver can tell its clients apart."""

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return not self._under_way

    # --- memory ---

    def registered(self, entry: Submit) -> Registered | None:
        """The registered buffer that holds all of the entry's data and allows what it does; None if there is none.

        Raises as :meth:`CapTable.lookup` does for a region that the client does not have.
        """
        caps = self._machine.caps
        known = self._regions.get(entry.region)
        if known is None or not caps.alive(known.cap):
            mine = caps.lookup(self.client.id, CapId(entry.region))
            handed = caps.handed(mine, self.target.id) if mine.kind == "arena" else None
            if handed is None:
                if known is not None:
                    del self._regions[entry.region]
                return None
            if len(self._regions) >= limits.CAPS_PER_HOLDER_MAX:  # of capabilities that are gone, most of them
                self._regions = {cap: each for cap, each in self._regions.items() if caps.alive(each.cap)}
            known = self._regions[entry.region] = Registered(mine, handed)
        if entry.buffer < known.begin or entry.buffer + entry.length > known.end:
            return None
        return known if not _NEEDS.get(entry.opcode, int(_DATA)) & ~known.rights else None

    def _lend(self, entry: Submit) -> Capability:
        """A capability on memory of the client's, for the driver, for as long as the request lasts."""
        caps, target = self._machine.caps, self.target
        mine = caps.lookup(self.client.id, CapId(entry.region))
        if caps.count(target.id) >= limits.CAPS_PER_HOLDER_MAX >> 1:  # its own grants must find room
            raise CapabilityError(f"{target.name}: too much memory is lent to it already", errno=errno.EMFILE)
        if mine.kind != "arena":
            raise CapabilityError(f"{mine!r}: expected a capability of kind 'arena'")
        if entry.buffer + entry.length > mine.length:
            raise CapabilityError(
                f"{mine!r}: bytes {entry.buffer}+{entry.length} are outside 0..{mine.length}", errno=errno.EFAULT
            )
        return caps.lend(self.client.id, mine.id, target.id, mine.rights & _DATA)

    def _retain(self, hold: Registered) -> None:
        if hold.inflight == 0:
            self._machine.arena.retain(hold.cap.start)
        hold.inflight += 1

    def _release(self, known: Registered) -> None:
        known.inflight -= 1
        if known.inflight == 0:
            self._machine.arena.release(known.cap.start)

    def _let_go(self, hold: Hold | Registered) -> None:
        """Takes back what a request had."""
        if isinstance(hold, Registered):
            self._release(hold)
            return
        machine = self._machine
        if hold.waits_for:
            machine.waits.remove(self.client.node, self.target.node, hold.waits_for)
        if hold.known is not None:
            self._release(hold.known)
        if hold.lent is not None:
            machine.caps.revoke(hold.lent.id)
            machine.arena.release(hold.lent.start)

    # --- submission ---

    def submit(self, entry: Submit, start: int, device: int) -> None:
        """Passes one request on; the answer goes back under the client's own command id."""
        hold, region, buffer = _NO_HOLD, 0, entry.buffer
        if entry.region:
            hold = self._take_hold(entry)
            if hold.known is not None:
                region, buffer = hold.known.cap.id, buffer - hold.known.begin
            elif hold.lent is not None:
                region = hold.lent.id
        request = Request(
            0, entry.opcode, entry.payload, start + entry.offset, entry.length, region, self._tag, device, buffer,
            entry.flags,
        )  # fmt: skip
        try:
            self._submit((request,))
        except UxkError:
            self._let_go(hold)
            raise
        self._under_way[request.cid] = entry
        self.client.defer(entry.cid)
        waits_for, backlog = "", self.target.requests.backlog
        if backlog and self.direct and request.cid in backlog:
            waits_for = f"queue slot {request.cid}"
        elif entry.wait:
            waits_for = f"request {request.cid}"
        if waits_for:
            self._machine.wait(self.client.node, self.target.node, waits_for)
        if region or waits_for:
            self._holds[request.cid] = Hold(hold.known, hold.lent, waits_for)
        if self._early:
            self._deliver_early()

    def _take_hold(self, entry: Submit) -> Hold:
        known = self.registered(entry)
        if known is not None:
            self._retain(known)
            return Hold(known, None, "")
        lent = self._lend(entry)
        self._machine.arena.retain(lent.start)
        return Hold(None, lent, "")

    def _submit(self, requests: Sequence[Request]) -> None:
        self._submitting = True
        try:
            self.port.submit_batch(requests)
        finally:
            self._submitting = False

    def submit_run(self, entries: Sequence[Up], cap: Capability, device: int) -> int:
        """Passes on the plain requests that ``entries`` begin with, under ``cap``, together; returns how many.

        Plain: within the capability, nobody waits for it, its region is registered, and it goes straight to the
        driver (a gate may hold it back).  A negative number: so many were refused together, and may pass alone.
        """
        room = self.target.requests.room if self.direct else len(entries)
        cap_id, start, length, commands = cap.id, cap.start, cap.length, self.client.commands
        run: list[Submit] = []
        requests: list[Request] = []
        known: dict[int, Registered] = {}
        cids: set[int] = set()
        for entry in entries if len(entries) <= room else entries[:room]:
            if type(entry) is not Submit or entry.cap != cap_id or entry.wait:
                break
            cid, payload, size_bytes = entry.cid, entry.payload, entry.length
            end = entry.offset + size_bytes
            if end > length or (payload and entry.offset + len(payload) > length) or cid in commands or cid in cids:
                break
            region, buffer = entry.region, entry.buffer
            if region:
                try:
                    registered = self.registered(entry)
                except UxkError:
                    break
                if registered is None:
                    break
                known[len(run)] = registered
                region, buffer = registered.cap.id, buffer - registered.begin
            cids.add(cid)
            run.append(entry)
            requests.append(Request(
                0, entry.opcode, payload, start + entry.offset, size_bytes, region, self._tag, device, buffer,
                entry.flags,
            ))  # fmt: skip
        if not run:
            return 0
        try:
            self._submit(requests)
        except UxkError:
            return -len(run)
        under_way = self._under_way
        for request, entry in zip(requests, run, strict=True):
            under_way[request.cid] = entry
        for index, registered in known.items():
            self._retain(registered)
            self._holds[requests[index].cid] = registered
        self.client.defer_batch(cids)
        if self._early:
            self._deliver_early()
        return len(run)

    # --- answers ---

    def _deliver_early(self) -> None:
        """What a gate has answered inside a submission, before its requests were known here."""
        early, self._early = self._early, []
        self._on_completions(early)

    def _on_completions(self, completions: list[Completion]) -> None:
        if self._submitting:
            self._early += completions
            return
        pop, holds = self._under_way.pop, self._holds
        read_bytes = written_bytes = 0
        for completion in completions:
            cid = completion.cid
            entry = pop(cid)
            completion.cid = entry.cid
            if entry.opcode <= _WRITE and not completion.status:
                if entry.opcode == _READ:
                    read_bytes += moved_bytes(entry, completion)
                elif entry.opcode == _WRITE:
                    written_bytes += moved_bytes(entry, completion)
            elif entry.opcode in self._data_ops and not completion.status:
                read, written = moved(entry, completion)
                read_bytes += read
                written_bytes += written
            if holds and (hold := holds.pop(cid, None)) is not None:
                self._let_go(hold)
        if read_bytes or written_bytes:
            account = self.client.account
            account.io_read_bytes += read_bytes
            account.io_written_bytes += written_bytes
        self.client.answer_batch(completions)

    def lent(self) -> list[CapId]:
        """Capabilities on the client's memory that the driver has now: lent, and registered and used."""
        holds = self._holds.values()
        found = [hold.lent.id for hold in holds if isinstance(hold, Hold) and hold.lent is not None]
        return found + [known.cap.id for known in self._regions.values()]

    def close(self) -> None:
        """Closes the port; what is still under way is answered with ECANCELED."""
        self.port.close()
        under_way, self._under_way = self._under_way, {}
        holds, self._holds = self._holds, {}
        for cid, entry in under_way.items():
            hold = holds.pop(cid, None)
            if hold is not None:
                self._let_go(hold)
            self.client.answer(entry.cid, errno.ECANCELED)


class Forwarders:
    """All connections of extensions with each other."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._open: dict[tuple[InstanceId, InstanceId, Gate], Forwarder] = {}

    def __len__(self) -> int:
        return len(self._open)

    def get(self, client: KernelAgent, target: KernelAgent, gate: Gate) -> Forwarder:
        """The client's connection to that gate of the target, opened if need be."""
        key = (client.id, target.id, gate)
        found = self._open.get(key)
        if found is None:
            self._close_stale(client, target)
            found = self._open[key] = Forwarder(client, target, gate)
        return found

    def _close_stale(self, client: KernelAgent, target: KernelAgent) -> None:
        """A gate may have come and gone with its device: nobody would ask for it again."""
        gates = {target, *(device.gate for device in target.devices.values())}
        for key, each in list(self._open.items()):
            if each.client is client and each.target is target and each.idle and each.gate not in gates:
                self._open.pop(key).close()

    def close_unused(self) -> None:
        """Closes connections to drivers of which the client holds no device any more: some may have been revoked."""
        for key, each in list(self._open.items()):
            client, target = each.client, each.target
            held = {(cap.kind, cap.target) for cap in self._machine.caps.held(client.id) if cap.depth}
            names = {("device", name) for name in target.devices} | {("chardev", name) for name in target.chardevs}
            bound = any(client.name in device.bound for device in target.devices.values())
            if not bound and not held & names:
                self._open.pop(key).close()

    def lent_to(self, agent: KernelAgent) -> set[CapId]:
        """Capabilities on clients' memory that the instance keeps when an incarnation of it dies."""
        return {cap for each in self._open.values() if each.target is agent for cap in each.lent()}

    def forget(self, agent: KernelAgent, *, gone: bool) -> None:
        """Closes what ``agent`` has open elsewhere; when it is ``gone``, also what others have open on it."""
        for key, each in list(self._open.items()):
            if each.client is agent or (gone and each.target is agent):
                self._open.pop(key).close()
