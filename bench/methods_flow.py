"""The volume that has to decide: writes at a steady rate, and a cleaner that needs a victim now and then.

The rule is the volume's frozen one (:mod:`uxk.subsystems.lfs.reference`): while there is too much garbage one victim
after the other is cleaned, and no user block is written meanwhile.  So whatever a decision waits for, writers wait
for.  Moving blocks takes no time here: all waiting that is seen comes from the decision.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from bench.methods_policy import Answer, Shape, rank, rows_of
from uxk.core.waitfor import Node
from uxk.errors import ConfigError
from uxk.kernel.kernel import Kernel
from uxk.subsystems.lfs.reference import Volume

CLEANER: Final = Node("kernel", "lfs0 cleaner")
WRITERS: Final = Node("task", "writers of lfs0")
REACTION_NS: Final = 500
"""From the write that makes a victim necessary to the decision, and from one victim to the next."""
Then: TypeAlias = Callable[[Answer | None], None]
"""Takes the answer that a decision goes by; None: the default decides."""
Change: TypeAlias = Literal["write", "victim"]


class Setup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run.  Raises :class:`ConfigError` for a value out of range."""

    pages: int = 8_192
    segment_blocks: int = 64
    writes: int = 16_384
    """Timed ones; the volume is filled and written once over before."""
    workload: str = "mixed"
    gap_ns: int = 5_000
    """Between two writes."""
    seed: int = 1
    clock: Literal["virtual", "charged"] = "charged"
    push: int = 1
    """Methods that push tell user space after every so many victims; 0: after every write and every victim."""
    poll_ns: int = 1_000_000
    """Period of polling."""
    ttl_ns: int = 10_000_000
    """Answers older than this are not followed."""
    hang_ns: int = 1 << 62
    """Virtual time after the start at which the adviser stops answering."""
    shadow: bool = True
    """Whether every decision is compared with what the policy would say at that moment; costs host time only."""

    def __post_init__(self) -> None:
        least = {"pages": 1_024, "segment_blocks": 8, "writes": 1, "gap_ns": 2, "poll_ns": 1, "ttl_ns": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"methods: {name} = {getattr(self, name)}: expected at least {low}")
        if self.push < 0:
            raise ConfigError(f"methods: push = {self.push}: expected 0, or a number of victims")


class Figures(msgspec.Struct):
    """What a run has counted; all times virtual."""

    victims: list[int] = msgspec.field(default_factory=list)
    """Every segment cleaned, in order."""
    followed: int = 0
    """Decisions that went by an answer of the policy's, the rest by the default."""
    same: int = 0
    """Of all decisions, those that agree with the policy on the state of that moment."""
    ages_ns: list[int] = msgspec.field(default_factory=list)
    """Of the answers followed: age of the state that they were chosen from."""
    waits_ns: list[int] = msgspec.field(default_factory=list)
    """From the need for a victim to the decision."""
    writes_delayed: int = 0
    """Writes that found the cleaner at work and had to wait."""
    delay_ns: int = 0
    """All their waiting."""
    delay_max_ns: int = 0


class Cleaner:
    """Writers and cleaner of one volume.  ``decide(then)`` is the method; ``changed(what)`` tells it of news."""

    def __init__(self, kernel: Kernel, volume: Volume, pages: Sequence[int], setup: Setup) -> None:
        self.kernel, self.volume, self.setup = kernel, volume, setup
        self.shape = Shape(volume.size, volume.most)
        self.figures = Figures()
        self.decide: Callable[[Then], None] = lambda then: then(None)
        self.changed: Callable[[Change], None] = lambda what: None
        self.left_over = 0
        """Garbage collections for which no segment had garbage enough."""
        self._pages = iter(pages)
        self._waiting: deque[tuple[int, int]] = deque()
        self._busy = False
        self._need_ns = 0

    def start(self) -> None:
        """The first write comes one gap from now."""
        self._schedule()

    # --- writers ---

    def _schedule(self) -> None:
        page = next(self._pages, None)
        if page is not None:
            self.kernel.call_at_ns(self.kernel.now_ns + self.setup.gap_ns, self._arrive, page)

    def _arrive(self, page: int) -> None:
        self._schedule()
        now_ns = self.kernel.now_ns
        if not self._busy:
            self._write(page)
            return
        if not self._waiting:
            self.kernel.machine.wait(WRITERS, CLEANER, "the end of cleaning")
        self._waiting.append((page, now_ns))

    def _write(self, page: int) -> None:
        self.volume.write(page, gc=False)
        self.changed("write")
        if self.volume.triggered:
            self._busy = True
            self._ask_soon()

    def _rest(self) -> None:
        """Nothing needs cleaning: whoever waited may write, until something does."""
        self._busy = False
        figures, now_ns = self.figures, self.kernel.now_ns
        had_waited = bool(self._waiting)
        while self._waiting and not self._busy:
            page, since_ns = self._waiting.popleft()
            figures.writes_delayed += 1
            figures.delay_ns += now_ns - since_ns
            figures.delay_max_ns = max(figures.delay_max_ns, now_ns - since_ns)
            self._write(page)
        if had_waited and not self._waiting:
            self.kernel.machine.waits.remove(WRITERS, CLEANER, "the end of cleaning")

    # --- the cleaner ---

    def _ask_soon(self) -> None:
        self.kernel.call_at_ns(self.kernel.now_ns + REACTION_NS, self._ask)

    def _ask(self, _: object) -> None:
        self._need_ns = self.kernel.now_ns
        self.decide(self._decided)

    def _decided(self, answer: Answer | None) -> None:
        figures, volume, now_ns = self.figures, self.volume, self.kernel.now_ns
        victim = self._first_good(answer, now_ns)
        if answer is not None and victim >= 0:
            figures.followed += 1
            figures.ages_ns.append(now_ns - answer.at_ns)
        else:
            victim = volume.select()
        if victim < 0:
            self.left_over += 1
            self._rest()
            return
        if self.setup.shadow:
            figures.same += rank(rows_of(volume).tolist(), self.shape)[:1] == (victim,)
        figures.waits_ns.append(now_ns - self._need_ns)
        figures.victims.append(victim)
        volume.collect(victim)
        self.changed("victim")
        if volume.triggered:
            self._ask_soon()
        else:
            self._rest()

    def _first_good(self, answer: Answer | None, now_ns: int) -> int:
        """The first victim that may be cleaned now, whatever was true when it was chosen; -1 if there is none."""
        if answer is None or not 0 <= now_ns - answer.at_ns <= self.setup.ttl_ns:
            return -1
        volume = self.volume
        for segment in answer.victims:
            if 0 <= segment < volume.segments and volume.sealed_at[segment] >= 0:
                if volume.live[segment] <= volume.most:
                    return segment
        return -1
