"""All ML models of a kernel: who made them, who is attached, and what agents may ask of them (R35, R41, R42).

Capabilities: ``model:NAME`` with *read* to attach and to pull datasets, with *write* for the control commands;
``site:NAME`` to give hints.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from uxk.core.caps import Capability, covers
from uxk.core.mlevents import MlEventRing
from uxk.core.mode import ModeConfig
from uxk.core.suggest import did_you_mean
from uxk.errors import BudgetError, CapabilityError, UsageError
from uxk.kernel import proxyviews
from uxk.kernel.agent import KernelAgent
from uxk.kernel.aside import Aside
from uxk.kernel.driversites import DriverSites
from uxk.kernel.machine import Machine
from uxk.kernel.proxy import Hooks, MLModelProxy, Probe
from uxk.kernel.proxydata import ProxyDataset
from uxk.kernel.sites import ProxySite
from uxk.uapi import entries as e
from uxk.uapi.ml import Feedback, ModeChange, ModelCommand, ModelEvent, ModelState, encode
from uxk.uapi.rights import Rights

MODELS_MAX: Final = 256
ATTACHED_MAX: Final = 64
"""Models that one instance may be attached to."""
FEEDBACK_BATCH: Final = 128
"""Records of feedback in one event, at most."""
_DONE: Final = (0, b"")
_DEVICE_EVENTS: Final[Mapping[int, tuple[ModelEvent, int]]] = {
    e.Op.OPEN: (ModelEvent.TEST_DEV_ACCESS, 0), e.Op.READ: (ModelEvent.TEST_DEV_IO, 0),
    e.Op.WRITE: (ModelEvent.TEST_DEV_IO, 1),
}  # fmt: skip
_CONTROLS: Final = frozenset({
    ModelCommand.START, ModelCommand.STOP, ModelCommand.PREPARE_DATASET, ModelCommand.DISCARD_DATASET,
})  # fmt: skip


class Models:
    """Makes models, serves Hint and Model entries, and delivers feedback and announcements."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._models: dict[str, MLModelProxy] = {}
        self._owner: dict[str, MLModelProxy] = {}
        """Models by the names of their sites."""
        self._wanted: dict[int, dict[str, KernelAgent]] = {}
        """Who asked to be attached to what, by instance: models may come later than agents."""
        self._senders: dict[int, KernelAgent] = {}
        self._feedback: dict[tuple[int, str], list[Feedback]] = {}
        self._news: dict[tuple[str, str], tuple[MLModelProxy, ProxySite | None]] = {}
        self._armed = False
        self._last_model = self._last_dataset = 0
        self.on_hint: Callable[[KernelAgent, e.Hint, str], object] | None = None
        """Sees every hint for a site that exists, and why it was refused at once: for recording."""
        self.on_generation: list[Callable[[MLModelProxy, ProxyDataset], object]] = []
        """See every new generation of a dataset of a running model, pushed or pulled, before any agent does."""
        self.on_mode: list[Callable[[MLModelProxy, ModeChange], object]] = []
        """Hear of every change of a mode."""
        self.events = MlEventRing(on_bug=lambda exc: machine.log("err", "ml", f"event reader dropped: {exc}"))
        """What kernel-ml-lib's tracepoints tell, of all models."""
        self.driver_sites = DriverSites(self)
        machine.tree.add(proxyviews.ROOT)
        machine.caps.on_delete["model"] = self._model_revoked
        machine.caps.on_delete["site"] = self._site_revoked

    def __iter__(self) -> Iterator[MLModelProxy]:
        return iter(list(self._models.values()))

    def __len__(self) -> int:
        return len(self._models)

    # --- for subsystems ---

    def create(
        self, subsystem: str, name: str, *, config: ModeConfig | None = None,
        state: Callable[[], Mapping[str, int | str]] = dict, probe: Callable[[], Probe] = dict,
        correct: Callable[[str], object] = lambda why: None, start: bool = True,
    ) -> MLModelProxy:  # fmt: skip
        """A new model, initialised, and started unless told not to: its mode is LEARNING then.

        ``state`` tells what the subsystem says of itself, ``probe`` its watermarks (by name: why it is critical,
        or None), ``correct`` undoes what hints have left behind.  EEXIST for a name in use, ENOSPC, EINVAL.
        """
        proxy = self.make(subsystem, name, Hooks(state, probe, correct))
        proxy.create()
        proxy.init(config)
        if start:
            proxy.start()
        return proxy

    def make(self, subsystem: str, name: str, hooks: Hooks) -> MLModelProxy:
        """A model that is yet to be created; EINVAL for a bad name."""
        proxy = MLModelProxy(self._machine, self, self._last_model + 1, subsystem, name, hooks)
        self._last_model += 1
        return proxy

    def get(self, name: str) -> MLModelProxy:
        """The model called ``name``, or ENODEV."""
        found = self._models.get(name)
        if found is None:
            raise UsageError(f"no model {name!r}{did_you_mean(name, self._models)}", errno=errno.ENODEV)
        return found

    def close_all(self) -> None:
        """Shutdown: every model goes, the newest first."""
        for proxy in reversed(list(self._models.values())):
            proxy.close()

    # --- for models ---

    def register(self, proxy: MLModelProxy) -> None:
        """Takes a new model in; attaches those who asked for it."""
        if proxy.name in self._models:
            raise UsageError(f"model {proxy.name!r} exists already", errno=errno.EEXIST)
        if len(self._models) >= MODELS_MAX:
            raise UsageError(f"model {proxy.name!r}: {MODELS_MAX} models at most", errno=errno.ENOSPC)
        self._models[proxy.name] = proxy
        proxyviews.add_model(self._machine, proxy)
        self._machine.log("info", f"{proxy.subsystem}/{proxy.name}", f"model {proxy.id} registered", model=proxy.id)
        self.emit(proxy, ModelEvent.MODEL_REGISTERED, ModelState.UNKNOWN, proxy.state)
        for wanted in list(self._wanted.values()):
            if proxy.name in wanted:
                proxy.attach(wanted[proxy.name])
        proxy.announce()

    def unregister(self, proxy: MLModelProxy) -> None:
        """Forgets a model with all its sites; its agents are told."""
        del self._models[proxy.name]
        for name in proxy.sites:
            del self._machine.sites[name], self._owner[name]
        self._news = {key: news for key, news in self._news.items() if news[0] is not proxy}
        for agent in proxy.agents.values():
            agent.event("model_gone", proxy.name)
        proxyviews.remove_model(self._machine, proxy)
        self._machine.log("info", f"{proxy.subsystem}/{proxy.name}", f"model {proxy.id} unregistered", model=proxy.id)
        self.emit(proxy, ModelEvent.MODEL_UNREGISTERED, proxy.state, ModelState.DEAD)

    def emit(self, proxy: MLModelProxy, type: ModelEvent, old: int = 0, new: int = 0, error: int = 0) -> None:
        """Adds an event to the ring."""
        self.events.emit(self._machine.now_ns, type, proxy.id, old, new, error)

    def device_used(self, agent: KernelAgent, opcode: int, size_bytes: int, error: int) -> None:
        """A char device was opened, read or written: an event, if its instance has a model."""
        if opcode not in _DEVICE_EVENTS:
            return
        proxy = self.driver_sites.model_of(agent)
        if proxy is not None:
            event, old = _DEVICE_EVENTS[opcode]
            self.emit(proxy, event, old, size_bytes, -error)

    def next_dataset_id(self) -> int:
        """A number that no dataset had before."""
        self._last_dataset += 1
        return self._last_dataset

    def show_site(self, proxy: MLModelProxy, site: ProxySite) -> None:
        """Puts a new site into the tree."""
        self._owner[site.name] = proxy
        proxyviews.add_site(self._machine, proxy, site)

    def show_dataset(self, proxy: MLModelProxy, dataset: ProxyDataset) -> None:
        """Puts a new dataset into the tree."""
        proxyviews.add_dataset(self._machine, proxy, dataset)

    def notify(self, proxy: MLModelProxy, attribute: str) -> None:
        """An attribute has a new value: who polls it is woken."""
        path = f"{proxy.path}/{attribute}"
        if self._machine.tree.exists(path):
            self._machine.tree.notify(path)

    def readers(self, proxy: MLModelProxy) -> list[KernelAgent]:
        """Attached agents that may read the model's data."""
        return [agent for agent in proxy.agents.values() if agent.host is not None]

    def announce(self, proxy: MLModelProxy, site: ProxySite | None) -> None:
        """Remembers what attached agents should hear at the end of this step."""
        self._news[proxy.name, "" if site is None else site.name] = (proxy, site)
        self._arm()

    def know(self, agent: KernelAgent) -> None:
        """It gives hints: feedback for it finds it."""
        self._senders[agent.id] = agent

    def tell(self, sender: int, record: Feedback) -> None:
        """Feedback for an agent: sent at the end of this step, or when there is much of it."""
        if sender not in self._senders:
            return
        box = self._feedback.setdefault((sender, record.site), [])
        box.append(record)
        if len(box) >= FEEDBACK_BATCH:
            self._send_feedback(sender, record.site)
        else:
            self._arm()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._machine.heap.call_at(self._machine.now_ns, self._flush)

    def _flush(self, _: object) -> None:
        self._armed = False
        news, self._news = self._news, {}
        for proxy, site in news.values():
            for agent in proxy.agents.values():
                if site is None:
                    agent.event("model", proxy.name, encode(proxy.info()))
                else:
                    agent.event("generation", site.name, encode(site.generation))
        for sender, name in list(self._feedback):
            self._send_feedback(sender, name)

    def _send_feedback(self, sender: int, name: str) -> None:
        records = self._feedback.pop((sender, name))
        self._senders[sender].event("feedback", name, encode(records))

    # --- for agents ---

    def services(self) -> dict[type, Callable[[KernelAgent, Any], tuple[int, bytes] | None]]:
        """For the dispatch table."""
        return {e.Hint: self._hint, e.Model: self._command, **self.driver_sites.services()}

    def _hint(self, agent: KernelAgent, entry: e.Hint) -> tuple[int, bytes] | None:
        machine = self._machine
        now_ns = machine.now_ns
        if not agent.hint_bucket.take(now_ns):
            raise BudgetError(f"more than {agent.manifest.budget.hints_per_s} hints a second")
        site = machine.sites.get(entry.site)
        if site is None:
            raise UsageError(f"no decision site {entry.site!r}", errno=errno.ENODEV)
        if machine.caps.find(agent.id, "site", entry.site, Rights.SUBMIT) is None:
            site.deny("forged")
            raise CapabilityError(f"{agent.name}: its manifest does not ask for site:{entry.site}")
        agent.account.hints += 1
        self.know(agent)
        proxy = self._owner.get(entry.site)
        if proxy is None:
            reason = site.offer(agent.id, entry, now_ns)
        elif proxy.runs:
            reason = proxy.preprocess_recommendation(agent, entry)
        else:
            reason = site.deny("stopped")
        if self.on_hint is not None:
            self.on_hint(agent, entry, reason)
        if reason:
            agent.account.reject(f"hint_{reason}")
            agent.answer(entry.cid, errno.EINVAL, payload=reason.encode())
            return None
        return _DONE

    def _command(self, agent: KernelAgent, entry: e.Model) -> tuple[int, bytes]:
        try:
            command = ModelCommand(entry.command)
        except ValueError:
            known = ", ".join(f"{each.name} {each.value}" for each in ModelCommand)
            raise UsageError(f"model {entry.model}: command {entry.command}; known: {known}") from None
        right = Rights.WRITE if command in _CONTROLS else Rights.READ
        if self._machine.caps.find(agent.id, "model", entry.model, right) is None:
            raise CapabilityError(f"{agent.name}: {command.name}: its manifest does not ask for "
                                  f"model:{entry.model}:{'write' if right is Rights.WRITE else 'read'}")  # fmt: skip
        if command is ModelCommand.ATTACH:
            self._attach(agent, entry.model)
        elif command is ModelCommand.DETACH:
            self._detach(agent, entry.model)
        elif command is ModelCommand.GET_DATASET:
            dataset, cap = self.get(entry.model).get_dataset(agent, entry.dataset, entry.offset, entry.size)
            return cap, encode(dataset)
        elif command is not ModelCommand.NOP:
            control(self.get(entry.model), command, entry.dataset)
        return _DONE

    def _attach(self, agent: KernelAgent, name: str) -> None:
        wanted = self._wanted.setdefault(agent.id, {})
        if name not in wanted and len(wanted) >= ATTACHED_MAX:
            raise UsageError(f"{agent.name}: attached to {ATTACHED_MAX} models already", errno=errno.EMFILE)
        wanted[name] = agent
        if name in self._models:
            self._models[name].attach(agent)

    def _detach(self, agent: KernelAgent, name: str) -> None:
        wanted = self._wanted.get(agent.id, {})
        if wanted.pop(name, None) is not None and name in self._models:
            self._models[name].detach(agent)
        if not wanted:
            self._wanted.pop(agent.id, None)

    # --- taking back ---

    def forget(self, agent: KernelAgent) -> None:
        """An incarnation is gone: its hints vanish, it is attached to nothing, nobody tells it anything."""
        self.driver_sites.forget(agent)
        self._wanted.pop(agent.id, None)
        for key in [key for key in self._feedback if key[0] == agent.id]:
            del self._feedback[key]
        for name, site in self._machine.sites.items():
            if name not in self._owner:
                site.forget(agent.id)
        for proxy in list(self._models.values()):
            proxy.forget(agent)
        self._senders.pop(agent.id, None)

    def set_aside(self, agent: KernelAgent, aside: Aside) -> None:
        """Remembers its sites and what it is attached to; its hints vanish, as hints may."""
        aside.models = list(self._wanted.get(agent.id, ()))
        aside.sites = self.driver_sites.offered(agent)
        self.forget(agent)

    def put_back(self, agent: KernelAgent, aside: Aside) -> None:
        """Attaches and offers it again."""
        for name in aside.models:
            self._attach(agent, name)
        for entry in aside.sites:
            try:
                self.driver_sites.offer_again(agent, entry)
            except UsageError as exc:  # somebody took the model's name meanwhile
                self._machine.log("warning", agent.name, f"site {entry.site}: not offered again: {exc}")

    def _model_revoked(self, cap: Capability) -> None:
        """Without a capability nobody is attached."""
        wanted = self._wanted.get(cap.holder, {})
        for name in [name for name in wanted if covers(cap.target, name)]:
            if not self._has_another(cap, name, Rights.READ):
                self._detach(wanted[name], name)

    def _site_revoked(self, cap: Capability) -> None:
        """Without a capability no hint is in force."""
        for name, site in self._machine.sites.items():
            if covers(cap.target, name) and not self._has_another(cap, name, Rights.SUBMIT):
                site.forget(cap.holder)

    def _has_another(self, gone: Capability, target: str, right: Rights) -> bool:
        held = self._machine.caps.held(gone.holder)
        return any(
            each.id != gone.id and each.kind == gone.kind and each.rights & right and covers(each.target, target)
            for each in held
        )


def control(proxy: MLModelProxy, command: ModelCommand, dataset: str = "") -> None:
    """One of the four commands of the reference's control plane; without a name, on all datasets."""
    if command is ModelCommand.START:
        proxy.start()
    elif command is ModelCommand.STOP:
        proxy.stop()
    elif command is ModelCommand.DISCARD_DATASET:
        proxy.discard_dataset(dataset)
    else:
        for name in [dataset] if dataset else list(proxy.datasets):
            proxy.publish_data(name)
