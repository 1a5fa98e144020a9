"""How long each page of a line takes, with everything that slows it: a bad die, heat, a power state."""

from __future__ import annotations

from typing import Final

import uxk
from uxk_nvme.medium.ftl.geometry import Geometry
from uxk_nvme.medium.params import MediumParams

PPM: Final = 1_000_000


class Timing:
    """Times by page of a line, so that a command needs one look-up; made anew when a factor changes.

    The lists keep their identity: who holds one sees the new numbers.
    """

    def __init__(self, geometry: Geometry, params: MediumParams) -> None:
        self._geometry = geometry
        cell = geometry.cell
        types = range(len(cell.read_ns))
        self._read_ns = [params.page_read_ns or cell.read_ns[kind] for kind in types]
        self._program_ns = [params.page_program_ns or cell.program_ns[kind] for kind in types]
        self._erase_ns = params.block_erase_ns or cell.erase_ns
        rate = params.interface or cell.interface_bytes_s
        self._unit_ns = geometry.map_bytes * 10**9 // rate
        self._page_ns = geometry.page_bytes * 10**9 // rate
        pages = range(geometry.line_pages)
        self.die_of = [geometry.die_of(page) for page in pages]
        self.channel_of = [geometry.channel_of(page) for page in pages]
        self.reads = [(0, 0, 0, 0)] * len(pages)
        """Die, channel, read time and transfer time of a unit, in one look-up."""
        self.read_ns = [0] * len(pages)
        self.program_ns = [0] * len(pages)
        self.unit_transfer_ns = [0] * geometry.channels
        self.page_transfer_ns = [0] * geometry.channels
        self.erase_ns = [0] * geometry.dies
        self._die_ppm = [PPM] * geometry.dies
        self._channel_ppm = [PPM] * geometry.channels
        self._all_ppm = PPM
        if params.slow_die >= 0:
            self.slow_die(params.slow_die, params.slow_ppm)
        if params.slow_channel >= 0:
            self.slow_channel(params.slow_channel, params.slow_ppm)
        self._fill()

    def slow_die(self, die: int, ppm: int) -> None:
        """From now on the die takes ``ppm`` / 10^6 times as long (fail-slow; 10^6: healthy again)."""
        if not 0 <= die < self._geometry.dies:
            raise uxk.ParamError(f"slow_die={die}: expected 0 to {self._geometry.dies - 1}")
        self._die_ppm[die] = ppm
        self._fill()

    def slow_channel(self, channel: int, ppm: int) -> None:
        """Likewise for the transfers of a channel."""
        if not 0 <= channel < self._geometry.channels:
            raise uxk.ParamError(f"slow_channel={channel}: expected 0 to {self._geometry.channels - 1}")
        self._channel_ppm[channel] = ppm
        self._fill()

    def slowed(self) -> list[str]:
        """Dies and channels that are slow: ``slow_die DIE PPM``, ``slow_channel CHANNEL PPM``."""
        return [
            f"{word} {index} {ppm}"
            for word, factors in (("slow_die", self._die_ppm), ("slow_channel", self._channel_ppm))
            for index, ppm in enumerate(factors)
            if ppm != PPM
        ]

    def slow_all(self, ppm: int) -> None:
        """Heat and power states: every die takes ``ppm`` / 10^6 times as long."""
        if ppm != self._all_ppm:
            self._all_ppm = ppm
            self._fill()

    def _fill(self) -> None:
        geometry, everything = self._geometry, self._all_ppm
        for page in range(geometry.line_pages):
            kind, factor = geometry.page_type(page), self._die_ppm[self.die_of[page]] * everything
            self.read_ns[page] = self._read_ns[kind] * factor // PPM**2
            self.program_ns[page] = self._program_ns[kind] * factor // PPM**2
        for die in range(geometry.dies):
            self.erase_ns[die] = self._erase_ns * self._die_ppm[die] * everything // PPM**2
        for channel in range(geometry.channels):
            self.unit_transfer_ns[channel] = self._unit_ns * self._channel_ppm[channel] // PPM
            self.page_transfer_ns[channel] = self._page_ns * self._channel_ppm[channel] // PPM
        for page, (die, channel) in enumerate(zip(self.die_of, self.channel_of, strict=True)):
            self.reads[page] = (die, channel, self.read_ns[page], self.unit_transfer_ns[channel])
