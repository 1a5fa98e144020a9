"""Decision sites that extensions offer: a driver's own decisions, advised like those of a subsystem (R1, R18).

The kernel keeps the model proxy, the mode, the evidence and the hints; the driver makes the decision and measures what
came of it.  Neither waits: at the end of each of its epochs the driver reports, and the answer says what share of its
units follows which hint until the next.  What a hint means is the driver's to judge, which says so if it cannot follow
one.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uxk.core.mode import ModeConfig
from uxk.errors import CapabilityError, TreeError, UsageError
from uxk.kernel.agent import KernelAgent
from uxk.uapi import entries as e
from uxk.uapi.ml import SiteState, encode

if TYPE_CHECKING:
    from uxk.kernel.devices import Change, Device
    from uxk.kernel.models import Models
    from uxk.kernel.proxy import MLModelProxy
    from uxk.kernel.proxydata import ProxyDataset
    from uxk.kernel.sites import ProxySite

SITES_MAX: Final = 16
"""Of one instance."""
ROWS_MAX_BYTES: Final = 4 << 20
"""Of one dataset's generation: it is the kernel's memory."""
HINT_MAX_BYTES: Final = 4096


class Offered(NamedTuple):
    """A site of an extension's, and the model behind it."""

    proxy: MLModelProxy
    site: ProxySite
    rows: ProxyDataset | None
    entry: e.OfferSite


class DriverSites:
    """Services OfferSite, EndEpoch and FillDataset."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._offered: dict[tuple[int, str], Offered] = {}
        self._given: dict[tuple[int, str], e.Hint] = {}
        """What the driver follows now."""

    def services(self) -> dict[type, Callable[[KernelAgent, Any], tuple[int, bytes]]]:
        """For the dispatch table."""
        return {e.OfferSite: self._offer, e.EndEpoch: self._epoch, e.FillDataset: self._fill}

    def _offer(self, agent: KernelAgent, entry: e.OfferSite) -> tuple[int, bytes]:
        device, dot, what = entry.site.partition(".")
        own = {agent.device_name, *agent.devices}
        if device not in own or not dot or not what:
            raise CapabilityError(
                f"site {entry.site!r}: expected DEVICE.NAME with a device of {agent.name}'s: {', '.join(sorted(own))}"
            )
        if "-" in what:  # model DEVICE-NAME is to be told from another device's
            raise UsageError(f"site {entry.site!r}: expected a NAME without '-'")
        if sum(key[0] == agent.id for key in self._offered) >= SITES_MAX:
            raise UsageError(f"{agent.name}: {SITES_MAX} decision sites at most", errno=errno.ENOSPC)
        dtype = _dtype(entry)
        try:
            config = ModeConfig(**dict(entry.modes))
        except TypeError as exc:
            raise UsageError(f"site {entry.site}: modes: {exc}") from None
        proxy = self._models.create(agent.name, f"{device}-{what}", config=config, start=entry.start)
        try:
            site = proxy.site(entry.site, _too_long, units=entry.units)
            ask = partial(_ask, agent, entry.site) if entry.on_demand else None
            rows = None if dtype is None else proxy.dataset("rows", dtype, entry.rows_max, ask=ask)
        except UsageError:
            proxy.close()
            raise
        self._offered[agent.id, entry.site] = Offered(proxy, site, rows, entry)
        if device in agent.devices:
            _link(agent.devices[device], what, proxy)
        return proxy.id, b""

    def _find(self, agent: KernelAgent, name: str) -> Offered:
        found = self._offered.get((agent.id, name))
        if found is None:
            raise UsageError(f"{agent.name} has not offered a site {name!r}", errno=errno.ENODEV)
        return found

    def model_of(self, agent: KernelAgent) -> MLModelProxy | None:
        """The model behind the first site that an instance has offered."""
        return next((found.proxy for key, found in self._offered.items() if key[0] == agent.id), None)

    def _fill(self, agent: KernelAgent, entry: e.FillDataset) -> tuple[int, bytes]:
        """Rows that were asked for, or why there are none."""
        found = self._find(agent, entry.site)
        if found.rows is None or not found.entry.on_demand:
            raise UsageError(f"site {entry.site}: was not offered with rows on demand")
        return found.rows.fill(_rows(entry.site, entry.rows, found.rows.dtype), entry.failed), b""

    def _epoch(self, agent: KernelAgent, entry: e.EndEpoch) -> tuple[int, bytes]:
        """Books the epoch, publishes its rows, and answers with what to follow now."""
        key = (agent.id, entry.site)
        found = self._find(agent, entry.site)
        site = found.site
        if found.rows is not None and entry.rows:
            found.rows.append(_rows(entry.site, entry.rows, found.rows.dtype))
            found.rows.publish()
        hint = self._given.pop(key, None)  # an epoch that was refused above goes on, and with it the hint
        if hint is not None and not site.gave(hint):
            hint = None
        if hint is not None and entry.refused:
            site.refuse(hint, entry.refused)
        elif hint is not None and entry.hinted_kpi:
            site.applied(hint, outcome=entry.hinted_kpi, baseline=entry.default_kpi)
        site.epoch(
            default_kpi=entry.default_kpi or None, hinted_kpi=entry.hinted_kpi or None, weight=entry.weight,
            hinted_weight=entry.hinted_weight,
        )  # fmt: skip
        hint = site.standing(agent.machine.now_ns)
        if hint is not None:
            self._given[key] = hint
        state = SiteState(site.mode, site.share_ppm, site.hinted_units, b"" if hint is None else hint.payload)
        return site.generation, encode(state)

    def forget(self, agent: KernelAgent) -> None:
        """An incarnation is gone: its sites go with it, and the next one offers its own."""
        self._close([key for key in self._offered if key[0] == agent.id])

    def offered(self, agent: KernelAgent) -> list[e.OfferSite]:
        """How an instance has offered its sites, in order."""
        return [found.entry for key, found in self._offered.items() if key[0] == agent.id]

    def offer_again(self, agent: KernelAgent, entry: e.OfferSite) -> None:
        """A build that has come back goes on to decide; what is known of hints begins anew."""
        self._offer(agent, entry)

    def on_device(self, device: Device, change: Change) -> None:
        """A device shows its models; one that is gone has nothing to decide."""
        begin = f"{device.name}."
        keys = [key for key in self._offered if key[0] == device.agent.id and key[1].startswith(begin)]
        if change == "remove":
            self._close(keys)
        elif change == "add":
            for key in keys:
                _link(device, key[1].removeprefix(begin), self._offered[key].proxy)

    def _close(self, keys: list[tuple[int, str]]) -> None:
        for key in keys:
            self._given.pop(key, None)
            self._offered.pop(key).proxy.close()


def _ask(agent: KernelAgent, site: str) -> None:
    if not agent.event("prepare", site):
        raise UsageError(f"{agent.name}: its queue is full: nobody hears that rows are wanted", errno=errno.ENOBUFS)


def _link(device: Device, name: str, proxy: MLModelProxy) -> None:
    """Puts a model where kernel-ml-lib has it: in the directory of its device, under the name of its site."""
    machine = device.agent.machine
    try:
        machine.tree.link(f"{device.path}/{name}", proxy.path)
    except TreeError as exc:  # the device has an attribute of that name
        machine.log("warning", device.agent.name, f"model {proxy.name}: {exc}")


def _rows(site: str, raw: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    if len(raw) % dtype.itemsize:
        raise UsageError(f"site {site}: {len(raw)} bytes of rows of {dtype.itemsize} bytes")
    return np.frombuffer(raw, dtype)


def _too_long(payload: bytes) -> str:
    return "malformed" if len(payload) > HINT_MAX_BYTES else ""


def _dtype(entry: e.OfferSite) -> np.dtype[Any] | None:
    if not entry.schema:
        return None
    try:
        dtype = np.dtype([(name, kind) for name, kind in entry.schema])
    except (TypeError, ValueError) as exc:
        raise UsageError(f"site {entry.site}: schema {entry.schema!r}: {exc}") from None
    if dtype.itemsize * entry.rows_max > ROWS_MAX_BYTES:
        raise UsageError(
            f"site {entry.site}: {entry.rows_max} rows of {dtype.itemsize} bytes, at most {ROWS_MAX_BYTES} bytes"
        )
    return dtype
