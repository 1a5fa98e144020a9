"""Requests of extensions on the devices of others: command ids are translated both ways, memory is lent.

A client has one connection for each target and gate.  What it has handed to the driver beforehand (a registered
buffer, io_uring's word) is used as it is; other memory is lent for as long as a request lasts.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from uxk.core.caps import Capability
from uxk.core.lifecycle import ModuleState
from uxk.errors import UxkError
from uxk.kernel.agent import KernelAgent
from uxk.kernel.aside import Aside
from uxk.kernel.lending import Hold, Lending, Registered
from uxk.kernel.moved import data_ops, moved, moved_bytes
from uxk.kernel.ports import Gate, GatePort
from uxk.kernel.slotwaits import SlotWaits
from uxk.uapi.entries import Completion, Op, Request, Submit, Up
from uxk.uapi.ids import CapId, InstanceId

if TYPE_CHECKING:
    from uxk.kernel.machine import Machine

_READ: Final = int(Op.READ)
_WRITE: Final = int(Op.WRITE)
_NO_HOLD: Final = Hold(None, None, "")


class Forwarder:
    """The port of one client extension at one gate of a target."""

    __slots__ = (
        "_data_ops", "_early", "_holds", "_lending", "_machine", "_overdue", "_submitting", "_tag", "_under_way",
        "_waits", "client", "direct", "gate", "port", "target",
    )  # fmt: skip

    def __init__(self, client: KernelAgent, target: KernelAgent, gate: Gate) -> None:
        self.client = client
        self.target = target
        self.gate = gate
        self.direct = gate is target
        """Whether nothing stands between client and driver."""
        self._machine = client.machine
        self._data_ops = data_ops(target.manifest)
        self._overdue = target.requests.overdue
        self._under_way: dict[int, Submit] = {}
        self._holds: dict[int, Hold | Registered] = {}
        """By the target's command id: what must be let go of with the answer."""
        self._lending = Lending(client, target)
        self._submitting = False
        self._early: list[Completion] = []
        self.port: GatePort = gate.open_port(client.name, self._on_completions, tagged=not self.direct)
        self._waits = SlotWaits(client, target, self.port)
        self._tag = self.port.id
        """What requests carry, so that the driver can tell its clients apart."""

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return not self._under_way

    @property
    def holding(self) -> bool:
        """Whether the driver has memory of the client's."""
        return bool(self._holds)

    # --- submission ---

    def submit(self, entry: Submit, start: int, device: int) -> None:
        """Passes one request on; the answer goes back under the client's own command id."""
        hold, region, buffer = _NO_HOLD, 0, entry.buffer
        if entry.region:
            hold = self._lending.take(entry)
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
            self._lending.let_go(hold)
            raise
        self._under_way[request.cid] = entry
        self.client.defer(entry.cid)
        waits_for = f"request {request.cid}" if entry.wait else ""
        tasks = () if isinstance(entry.wait, bool) else entry.wait
        if waits_for:
            self._machine.wait(self.client.node._replace(tasks=tasks), self.target.node, waits_for)
        elif not self.direct or self.target.requests.backlog:
            self._waits.note((entry.cid,))
        if region or waits_for:
            self._holds[request.cid] = Hold(hold.known, hold.lent, waits_for, tasks)
        if self._early:
            self._deliver_early()

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
        find = self._lending.registered
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
                    registered = find(entry)
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
            self._lending.retain(registered)
            self._holds[requests[index].cid] = registered
        self.client.defer_batch(cids)
        if not self.direct:
            self._waits.note(cids)
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
        if self._overdue:
            self._keep_overdue(completions)
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
                self._lending.let_go(hold)
        if read_bytes or written_bytes:
            account = self.client.account
            account.io_read_bytes += read_bytes
            account.io_written_bytes += written_bytes
        if self._waits.delayed:
            self._waits.answered([completion.cid for completion in completions])
        self.client.answer_batch(completions)

    def lent(self) -> list[CapId]:
        """Capabilities on the client's memory that the driver has for the requests under way."""
        return [hold.cap.id for hold in self._holds.values() if hold.cap is not None]

    def _take_leave(self) -> None:
        """A driver with passthrough has something for each client: it hears, in its turn, that this one has gone."""
        if self.direct and self.target.manifest.passthrough:
            with contextlib.suppress(UxkError):  # the driver has gone as well, or takes nothing now
                self._submit((Request(0, Op.RELEASE, port=self._tag),))

    def close(self) -> None:
        """Closes the port; what is still under way is answered with ECANCELED.

        What was lent is revoked.  But the driver works on: the memory stays until it has answered, or is gone.
        """
        self._take_leave()
        self.port.close(self._on_late)
        client = self.client
        self._waits.end()
        holds, self._holds = self._holds, {}
        for cid, hold in holds.items():
            if (left := self._lending.revoke(hold)) is not None:
                self._holds[cid] = left
        under_way, self._under_way = self._under_way, {}
        for entry in under_way.values():
            client.answer(entry.cid, errno.ECANCELED)

    def _on_late(self, completions: list[Completion]) -> None:
        """The driver's answers to what it had when the port was closed."""
        if self._overdue:
            self._keep_overdue(completions)
        for completion in completions:
            hold = self._holds.pop(completion.cid, None)
            if hold is not None:
                self._lending.let_go(hold)

    def _keep_overdue(self, completions: list[Completion]) -> None:
        """Some requests were answered for the driver; it may have memory of these, from this try or an earlier one."""
        for completion in completions:
            hold = self._holds.get(completion.cid)
            if hold is not None and hold.cap is not None:
                self._overdue.keep(hold.cap.id, hold.cap.start)

    def drop(self) -> None:
        """The driver is gone, and does nothing any more."""
        holds, self._holds = self._holds, {}
        for hold in holds.values():
            self._lending.let_go(hold)


class Forwarders:
    """All connections of extensions with each other."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._open: dict[tuple[InstanceId, InstanceId, Gate], Forwarder] = {}
        self._closed: list[Forwarder] = []
        """Connections that are closed while the driver has memory of their clients'."""

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
                self._close(key)

    def _close(self, key: tuple[InstanceId, InstanceId, Gate]) -> None:
        closed = self._open.pop(key)
        closed.close()
        self._closed = [each for each in self._closed if each.holding]
        if closed.holding:
            self._closed.append(closed)

    def under_way(self, client: KernelAgent) -> int:
        """Requests of ``client`` that are not answered yet."""
        return sum(len(each._under_way) for each in self._open.values() if each.client is client)

    def close_unused(self) -> None:
        """Closes connections to drivers of which the client holds no device any more: some may have been revoked."""
        for key, each in list(self._open.items()):
            client, target = each.client, each.target
            held = {(cap.kind, cap.target) for cap in self._machine.caps.held(client.id) if cap.depth}
            names = {("device", name) for name in target.devices} | {("chardev", name) for name in target.chardevs}
            bound = any(client.name in device.bound for device in target.devices.values())
            if not bound and not held & names:
                self._close(key)

    def lent_to(self, agent: KernelAgent) -> set[CapId]:
        """Capabilities on clients' memory that the instance keeps when an incarnation of it dies.

        Those are lent for requests, and handed over by instances that have something of it open.
        """
        caps = self._machine.caps
        kept = {cap for each in self._open.values() if each.target is agent for cap in each.lent()}
        users = {holder for name in agent.devices for holder in caps.holders("device", name)}
        users |= {holder for name in agent.chardevs for holder in caps.holders("chardev", name)}
        users |= {each.client.id for each in self._open.values() if each.target is agent}
        return kept | {cap.id for cap in caps.handed_to(agent.id, "arena") if caps.giver(cap) in users}

    def set_aside(self, agent: KernelAgent) -> dict[Any, Forwarder]:
        """Takes away what ``agent`` has open elsewhere; requests still under way there are answered with ECANCELED."""
        aside: dict[Any, Forwarder] = {}
        for key, each in list(self._open.items()):
            if each.client is agent and each.idle:
                aside[key] = self._open.pop(key)
            elif each.client is agent:
                self._close(key)
        return aside

    def put_back(self, aside: Aside) -> None:
        """Opens it again, as far as the others are still there."""
        for key, each in aside.forwarders.items():
            if each.target.state is ModuleState.GONE or key in self._open:
                each.close()
            else:
                self._open[key] = each

    def let_go(self, aside: Aside) -> None:
        """Closes it for good."""
        for each in aside.forwarders.values():
            each.close()

    def forget(self, agent: KernelAgent, *, gone: bool) -> None:
        """Closes what ``agent`` has open elsewhere; when it is ``gone``, also what others have open on it."""
        for key, each in list(self._open.items()):
            if each.client is agent or (gone and each.target is agent):
                self._close(key)
        for each in self._closed if gone else ():
            if each.target is agent:
                each.drop()
