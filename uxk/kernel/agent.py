"""The kernel-side agent of one instance: the single mechanism behind every extension (R1, R5, R18).

Owns the queue pairs and the account, runs turns, and takes everything back.  What differs between extensions
is their manifest; what a message *means* is decided by the services (services.py).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from uxk import limits
from uxk.actor.actor import Crash, Output, State
from uxk.core.budget import memory_bytes
from uxk.core.events import EventId
from uxk.core.lifecycle import ModuleState
from uxk.core.manifest import canonical
from uxk.core.ratelimit import RateLimit, TokenBucket
from uxk.core.restart import Restarter
from uxk.core.waitfor import Node
from uxk.errors import errno_name
from uxk.kernel.aside import Aside
from uxk.kernel.machine import Machine
from uxk.kernel.pace import Pace
from uxk.kernel.ports import OnCompletions, Port
from uxk.kernel.queues import NO_PONGS, NO_REPLIES, NO_UPS, NOTHING, Queues
from uxk.kernel.requests import RequestTable
from uxk.kernel.seconds import cpu_ns
from uxk.module import Extension
from uxk.uapi.entries import Completion, Entry, Event, Pong, Up
from uxk.uapi.ids import InstanceId
from uxk.uapi.manifest import Params

if TYPE_CHECKING:
    from uxk.kernel.devices import Device
    from uxk.kernel.host import Host
    from uxk.kernel.transaction import Upgrade


class KernelAgent:
    """One loaded instance as the kernel sees it."""

    __slots__ = (
        "_bell", "_held_event", "_last_port", "_life_timer", "_pace", "_ports", "_wake_event", "account", "aside",
        "attributes", "chardevs", "commands", "complaint_limit", "cpu_ceiling_ppm", "deps", "device_name", "devices",
        "extension_class", "handed", "held_back", "hint_bucket", "host", "id", "incarnation", "kept_regions",
        "kmsg_cancel", "lives", "log_limit", "machine", "manifest", "memory_bytes", "name", "node", "on_crash",
        "on_exit", "on_failed", "on_live", "on_pong", "on_ready", "on_up", "params", "pings_unanswered", "placement",
        "pulse", "queue_cap", "queues", "ready", "regions", "requests", "restarter", "state", "unheard", "upgrade",
        "users",
    )  # fmt: skip

    def __init__(
        self, machine: Machine, instance: InstanceId, name: str, cls: type[Extension[Any]], params: Params
    ) -> None:
        manifest = cls.manifest
        self.machine = machine
        self.id = instance
        self.name = name
        self.extension_class = cls
        self.manifest = manifest
        self.params = params
        self.memory_bytes = memory_bytes(manifest, params)
        """Arena memory that it may hold."""
        self.device_name = f"{name}0" if name == canonical(manifest.name) else name
        """Its own device: ``null0`` for the module's own instance, the instance's name for a further one."""
        self.placement = manifest.placement  # who loads it may say otherwise
        self.node = Node("instance", name)
        self.state = ModuleState.UNFORMED
        self.queues = Queues(machine, instance, manifest.budget.queue_depth)
        self.queues.on_bad = self._refuse
        self._bell = self.queues.sq
        self.account = self.queues.account
        self.requests: RequestTable = (machine.request_table or RequestTable)(
            machine, self.account, manifest, self.queues.staged, self.wake, self.complain
        )
        self.commands: set[int] = set()
        """Command ids of the extension's that wait for an answer."""
        self.cpu_ceiling_ppm = limits.PPM  # who loads it may allow less than its manifest says
        self._pace = Pace(machine, self.account, manifest, self.cpu_ppm)
        self._ports: dict[int, Port] = {}
        self._last_port = 0
        self.host: Host | None = None
        self.incarnation = self.queue_cap = self.pulse = 0
        self.lives = 0
        """The number of the last incarnation."""
        self.aside: Aside | None = None
        """The incarnation before, while another build is started beside it."""
        self.ready = False
        self.deps: tuple[str, ...] = ()
        self.devices: dict[str, Device] = {}
        self.chardevs: dict[str, Any] = {}
        self.attributes: dict[str, str] = {}
        self.regions: dict[int, int] = {}
        self.kept_regions: dict[str, int] = {}
        self.kmsg_cancel: Callable[[], None] | None = None
        self.restarter = Restarter(manifest.restart)
        self.log_limit = RateLimit(manifest.budget.log_burst, limits.LOG_INTERVAL_NS_DEFAULT)
        self.complaint_limit = RateLimit(limits.LOG_BURST_DEFAULT, limits.LOG_INTERVAL_NS_DEFAULT)
        """Of what the kernel says of it: its own lines cannot use that up."""
        self.hint_bucket = TokenBucket(manifest.budget.hints_per_s, manifest.budget.hints_per_s)
        self.pings_unanswered = 0
        self.held_back = False
        """Whether it waits for its turn because it is busy or has used up its share."""
        self.unheard = False  # whether what its process says is not read for now, its share being used up
        self._wake_event: tuple[int, EventId] | None = None
        self._life_timer: EventId | None = None
        self._held_event: EventId | None = None
        self.upgrade: Upgrade | None = None
        self.handed: State | None = None  # for the next incarnation, in an upgrade
        self._hear_nobody()

    def _hear_nobody(self) -> None:
        self.on_up: Callable[[KernelAgent, Sequence[Up]], None] = _nothing
        self.on_crash: Callable[[KernelAgent, Crash], None] = _nothing
        self.on_ready: Callable[[], None] = _nothing
        self.on_exit: Callable[[], None] = _nothing
        self.on_live: Callable[[], object] = _nothing
        self.on_failed: Callable[[Crash], object] = _nothing
        self.users: Callable[[], list[str]] = list
        self.on_pong: Callable[[int], None] = _nothing

    def __repr__(self) -> str:
        return f"<KernelAgent {self.name}[{self.id}] {self.state.name}>"

    def become(self, cls: type[Extension[Any]], params: Params) -> None:
        """Another version of its module, from the next incarnation on; it keeps name, rings, devices and clients."""
        before, manifest = self.manifest, cls.manifest
        self.extension_class, self.manifest, self.params = cls, manifest, params
        self.memory_bytes = memory_bytes(manifest, params)
        self.requests.follow(manifest)
        if manifest is not before:
            self._pace = Pace(self.machine, self.account, manifest, self.cpu_ppm)
        if manifest.restart != before.restart:
            self.restarter = Restarter(manifest.restart)
        if manifest.budget != before.budget:
            self.log_limit = RateLimit(manifest.budget.log_burst, limits.LOG_INTERVAL_NS_DEFAULT)
            self.hint_bucket = TokenBucket(manifest.budget.hints_per_s, manifest.budget.hints_per_s)

    @property
    def cpu_ppm(self) -> int:
        """Its share of one processor."""
        return min(self.manifest.budget.cpu_ppm, self.cpu_ceiling_ppm)

    def limit_cpu(self, ppm: int) -> None:
        """Lowers its share, and that of every later build of its module.  Before it is started."""
        self.cpu_ceiling_ppm = ppm
        self._pace = Pace(self.machine, self.account, self.manifest, self.cpu_ppm)

    # --- ports ---

    def open_port(self, client: str, on_completions: OnCompletions, *, tagged: bool = False) -> Port:
        """A new client's connection; with ``tagged`` its requests carry its number."""
        self._last_port += 1
        port = self._ports[self._last_port] = Port(self, self._last_port, client, on_completions, tagged=tagged)
        return port

    def close_port(self, port: Port, on_late: OnCompletions | None = None) -> None:
        """Forgets a client; answers that still come for it go to ``on_late``, or are dropped."""
        port.on_completions = on_late or _nothing
        self._ports.pop(port.id, None)

    def clients(self) -> list[str]:
        """Names of those who hold the instance: named ports, and nameless ones with requests in flight."""
        busy = {batch.port.id for book in (self.requests.inflight, self.requests.backlog) for batch in book.values()}
        return sorted({port.client or "user" for port in self._ports.values() if port.client or port.id in busy})

    # --- messages to the extension ---

    @property
    def has_room(self) -> bool:
        """Whether one more event can be staged; an instance that is down takes everything, and drops it."""
        return self.host is None or len(self.queues.staged) < self.queues.sq.depth

    def send(self, entry: Entry) -> bool:
        """Stages an event or a ping; False (and counted) if the queue has no room for it."""
        return self.send_batch((entry,)) == 1

    def send_batch(self, entries: Sequence[Entry]) -> int:
        """Stages events as one batch; returns how many there was room for, the rest is dropped and counted."""
        staged = self.queues.staged
        room = 0 if self.host is None else max(0, self.queues.sq.depth - len(staged))
        if room < len(entries):
            self.account.reject("event_dropped", len(entries) - room)
            entries = entries[:room]
        if entries:
            staged += entries
            self.wake()
        return len(entries)

    def event(self, topic: str, name: str = "", value: bytes = b"", cap: int = 0) -> bool:
        """Sends one event; as :meth:`send`.  A program may have it end here."""
        hook = self.machine.event_hooks.get(self.id)
        return (hook is not None and hook(topic, value)) or self.send(Event(topic, name, value, cap))

    def answer(self, cid: int, status: int = 0, result: int = 0, payload: bytes = b"") -> None:
        """Answers a command of the extension's."""
        if cid in self.commands:
            self.commands.discard(cid)
            self.machine.outstanding -= 1
        if self.host is None:
            return
        staged = self.queues.staged_answers
        if len(staged) >= self.queues.answers.depth:
            self.account.reject("cq_overflow")
            return
        staged.append(Completion(cid, status, result, payload))
        self.wake()

    def defer(self, cid: int) -> None:
        """Notes that a command will be answered later."""
        self.commands.add(cid)
        self.machine.outstanding += 1

    def answer_batch(self, answers: list[Completion]) -> None:
        """Answers several commands; the completions are the caller's no more."""
        commands = self.commands
        before = len(commands)
        if len(answers) == 1:
            commands.discard(answers[0].cid)
        else:
            commands.difference_update([answer.cid for answer in answers])
        self.machine.outstanding -= before - len(commands)
        if self.host is None:
            return
        staged = self.queues.staged_answers
        room = max(0, self.queues.answers.depth - len(staged))
        if len(answers) > room:
            self.account.reject("cq_overflow", len(answers) - room)
            answers = answers[:room]
        if answers:
            staged += answers
            self.wake()

    def defer_batch(self, cids: Collection[int]) -> None:
        """As :meth:`defer`, for different commands none of which is outstanding."""
        self.commands.update(cids)
        self.machine.outstanding += len(cids)

    def wake(self, _: object = None) -> None:
        """Rings the doorbell, if the instance sleeps (NEED_WAKEUP): it is runnable from now on."""
        bell = self._bell
        if bell.need_wakeup and self.host is not None:
            bell.need_wakeup = False
            bell.doorbells += 1
            machine = self.machine
            machine.runnable.append(self)
            if machine.parked:
                machine.wake()

    # --- turns ---

    def turn(self) -> None:
        """Delivers what is staged, lets the extension run, and takes in what it says."""
        self._bell.need_wakeup = True
        self.held_back = False
        host, pace = self.host, self._pace
        if host is None or host.stalled or (pace.limited and self._must_wait()):
            return
        machine, account, queues = self.machine, self.account, self.queues
        charged_before_ns = account.charged_ns if pace.charged else 0
        down: Sequence[bytes] = NOTHING
        if queues.staged:
            down = queues.ring_out(queues.sq, queues.staged)
            if queues.staged:  # more than the ring holds
                self.wake()
        answers = queues.ring_out(queues.answers, queues.staged_answers) if queues.staged_answers else NOTHING
        began_ns = cpu_ns()
        output = host.turn(machine.now_ns, down, answers)
        spent_ns = cpu_ns() - began_ns
        account.cpu_ns += spent_ns
        account.turns += 1
        if down or answers:
            account.crossings += 1
        if host.runs:
            machine.settle_needed = True
            if not host.ended:  # what it staged in this turn has been taken with it
                machine.dirty.pop(self.id, None)
        self._take(output, spent_ns, charged_before_ns)
        if pace.measured:
            pace.book(cpu_ns() - began_ns)

    def collect(self) -> None:
        """Takes what the extension's Trio task staged outside turns."""
        host, pace = self.host, self._pace
        if host is not None:
            real = self.machine.clock == "real"
            began_ns = cpu_ns() if real else 0
            self._take(host.collect(), 0, self.account.charged_ns if pace.charged else 0)
            if real:
                self.book(cpu_ns() - began_ns)
            if host is self.host and host.ended:
                self.on_exit()

    def book(self, spent_ns: int) -> None:
        """The kernel has worked for it so long, outside its turns: that counts as its own time, and as its share."""
        self.account.cpu_ns += spent_ns
        self._pace.book(spent_ns)

    def last_words(self, reason: str) -> None:
        """Lets a healthy extension say goodbye, and hears it."""
        host = self.host
        if host is not None and host.crash is None:
            began_ns = cpu_ns()
            output = host.stop(reason)
            self.account.cpu_ns += cpu_ns() - began_ns
            self._take(output, 0, None)

    @property
    def limited(self) -> bool:
        """Whether it has less than a whole processor as its share."""
        return self._pace.limited

    def not_before_ns(self) -> int | None:
        """When the kernel may work for it again, if not now; one that has used up its share is complained of."""
        throttled_before = self.account.throttled
        not_before_ns = self._pace.not_before_ns()
        if self.account.throttled != throttled_before:
            share_ppm = self.cpu_ppm
            self.complain(f"its {share_ppm} ppm of the processor are used up until {not_before_ns} ns", errno.EDQUOT)
        return not_before_ns

    def _must_wait(self) -> bool:
        not_before_ns = self.not_before_ns()
        if not_before_ns is None:
            return False
        self._bell.need_wakeup = False
        self.held_back = True
        self._held_event = self.machine.heap.call_at(not_before_ns, self._requeue)
        return True

    def _requeue(self, _: object) -> None:
        self._held_event = None
        self.machine.runnable.append(self)
        if self.machine.parked:
            self.machine.wake()

    def _take(self, output: Output, spent_ns: int, charged_before_ns: int | None) -> None:
        """Reads the extension's frames and acts on them: now, or on the charged clock when their cost has passed.

        ``charged_before_ns`` is the account's figure before the turn; None acts at once on any clock.
        """
        queues, pace = self.queues, self._pace
        if not self.queue_cap and (lost := queues.drop(output)):
            self.account.reject("queue_revoked", lost)
            self.complain(f"{lost} entries dropped: its capability on its queues was revoked", errno.ESTALE)
        replies, pongs, ups = NO_REPLIES, NO_PONGS, NO_UPS
        if output.replies:
            replies, pongs = queues.replies_of(output.replies)
        if output.up:
            ups = queues.ups_of(output.up)
        if output.replies or output.up:
            self.account.crossings += 1
        if ups or pace.charged:
            pace.book_thinking(ups, spent_ns)
        armed = self._wake_event
        if output.wake_at_ns != (None if armed is None else armed[0]):
            self._arm_wake(output)
        if pace.charged and charged_before_ns is not None:
            until_ns = pace.busy_for(self.account.charged_ns - charged_before_ns)
            if replies or pongs or ups:
                self.machine.heap.call_at(until_ns, self._act_later, (self.incarnation, replies, pongs, ups))
        elif replies or pongs or ups:
            self._act(replies, pongs, ups)
        host = self.host
        if host is not None and host.crash is not None:
            self.on_crash(self, host.crash)

    def _act_later(self, item: tuple[int, list[Completion], list[Pong], list[Up]]) -> None:
        incarnation, replies, pongs, ups = item
        if incarnation == self.incarnation:
            self._act(replies, pongs, ups)
        elif self.aside is not None and incarnation == self.aside.incarnation:
            self.aside.late.append(item)

    def _act(self, replies: list[Completion], pongs: list[Pong], ups: list[Up]) -> None:
        incarnation = self.incarnation
        if replies:
            self.requests.on_replies(replies)
        for pong in pongs:
            self.on_pong(pong.number)
        if ups and self.incarnation == incarnation:  # else something of the above has ended it
            self.on_up(self, ups)

    def _arm_wake(self, output: Output) -> None:
        """Schedules the extension's next timer, which is another than the one that is armed."""
        due_ns, armed = output.wake_at_ns, self._wake_event
        if armed is not None:
            self.machine.heap.cancel(armed[1])
            self._wake_event = None
        if due_ns is not None:
            heap = self.machine.heap
            schedule = heap.call_at_daemon if output.daemon_wake else heap.call_at
            self._wake_event = (due_ns, schedule(max(due_ns, self.machine.now_ns), self._on_timer))

    @property
    def next_timer_ns(self) -> int | None:
        """When the extension wants to be woken next."""
        return None if self._wake_event is None else self._wake_event[0]

    def _on_timer(self, _: object) -> None:
        self._wake_event = None
        self.wake()

    # --- complaints and ends ---

    def _refuse(self, which: str, cid: int | None, reason: str) -> None:
        """An entry that cannot be read, or written: answered if its id is known, always counted."""
        kind = reason.partition(":")[0]
        self.account.reject(kind)
        self.complain(f"{which}: {reason}" + ("" if cid is None else f", command {cid}"))
        if cid is not None:
            if which == "up":
                self.answer(cid, errno.EINVAL, payload=kind.encode())
            else:
                self.requests.fail_one(cid, errno.EBADMSG if which == "replies" else errno.EINVAL)

    def complain(self, text: str, status: int = errno.EPROTO) -> None:
        """A rate-limited warning about what the extension did, with its errno."""
        limit = self.complaint_limit
        if not limit.allow(self.machine.now_ns):
            self.account.log_suppressed += 1
            return
        suppressed = limit.take_suppressed()
        more = f" ({suppressed} complaints suppressed before)" if suppressed else ""
        self.machine.log("warning", self.name, f"{errno_name(status)}: {text}{more}", errno=status)

    def detach(self) -> None:
        """Cuts the present incarnation off: its host, its timer, what it waits for."""
        host, self.host = self.host, None
        if host is not None:
            host.abandon()
        self._end()

    def set_aside(self) -> Aside:
        """Puts the present incarnation aside as it is, for another one to be started; what it waits for is cut off."""
        for cid in sorted(self.commands):
            self.answer(cid, errno.ECANCELED)
        queues, policies = self.queues, (self._pace, self.restarter, self.log_limit, self.hint_bucket)
        self.aside = Aside(
            host=self.host, incarnation=self.incarnation, queue_cap=self.queue_cap, staged=[*queues.staged],
            staged_answers=[*queues.staged_answers], policies=policies,
        )  # fmt: skip
        self.host = None
        queues.staged.clear()
        self._pace = Pace(self.machine, self.account, self.manifest, self.cpu_ppm)
        self._end()
        return self.aside

    def put_back(self, aside: Aside) -> None:
        """The incarnation that was put aside goes on; the one after it is over."""
        self.aside, self.host, self.incarnation = None, aside.host, aside.incarnation
        self.queue_cap, self.ready = aside.queue_cap, True
        self._pace, self.restarter, self.log_limit, self.hint_bucket = aside.policies
        self.queues.staged += aside.staged
        self.queues.staged_answers += aside.staged_answers
        for item in aside.late:
            self._act_later(item)
        self.machine.mark_dirty(self)
        self.wake()

    def _end(self) -> None:
        if self._wake_event is not None:
            self.machine.heap.cancel(self._wake_event[1])
            self._wake_event = None
        if self._held_event is not None:  # nobody waits for its next share any more
            self.machine.heap.cancel(self._held_event)
            self._held_event = None
        self.held_back = self.unheard = False
        self.queues.staged_answers.clear()
        self.machine.outstanding -= len(self.commands)
        self.commands.clear()
        self.ready = False
        self.lives += 1
        self.incarnation = self.lives
        self._pace.reset()
        self._bell.need_wakeup = True
        self.clear_life_timer()
        self.machine.dirty.pop(self.id, None)

    def set_life_timer(self, delay_ns: int, callback: Callable[[], object]) -> None:
        """The one thing that its life waits for, back-off or readiness; the end of an incarnation cancels it."""
        self.clear_life_timer()
        self._life_timer = self.machine.heap.call_at(self.machine.now_ns + delay_ns, self._on_life_timer, callback)

    def clear_life_timer(self) -> None:
        """It need not be waited for any more."""
        timer, self._life_timer = self._life_timer, None
        if timer is not None:
            self.machine.heap.cancel(timer)

    def _on_life_timer(self, callback: Callable[[], object]) -> None:
        self._life_timer = None
        callback()


def _nothing(*_: object) -> None:
    """The handler of whom nobody listens to."""
