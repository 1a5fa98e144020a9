"""Ten mistakes as people make them, each planted into the running code, and how often exploring finds them.

``python tests/simulation/planted.py [--seeds N] [--bug NAME] [--write docs/explore.md]`` prints (and writes) the table.
A mistake is a change of a few words in one function; if the words are not there any more, planting it fails.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import cast as cast_of  # noqa: E402

from uxk.faults import Fault  # noqa: E402
from uxk.kernel.agent import KernelAgent  # noqa: E402
from uxk.kernel.dispatcher import Dispatcher  # noqa: E402
from uxk.kernel.reclaim import Reclaimer  # noqa: E402
from uxk.kernel.requests import RequestTable  # noqa: E402
from uxk.subsystems.blk.flush import FlushMachine  # noqa: E402
from uxk.testing.exploring.explorer import Explorer  # noqa: E402
from uxk.testing.exploring.files import fault_lines  # noqa: E402
from uxk.testing.exploring.trial import Outcome, Trial  # noqa: E402

HASH_SEEDS = (1, 3)
"""Of processes whose event hashes are compared; the two put the names of the cast's tasks in different orders."""


class Bug(NamedTuple):
    """A mistake: the method, what is right in it, and what is wrong."""

    name: str
    says: str
    owner: type
    method: str
    right: str
    wrong: str
    scenario: str
    """Of the cast: where it is looked for."""


BUGS = (
    Bug(
        "unanswered", "requests that a dead driver had seen are not answered when its fate is requeue",
        RequestTable, "on_death", "        self._fail_all(lost.items(), errno.EIO)",
        '        if fate != "requeue":\n            self._fail_all(lost.items(), errno.EIO)', "charged",
    ),
    Bug(
        "answered-twice", "a waiting request that runs into its deadline is answered, and stays in the backlog",
        RequestTable, "_sweep", "late += _older_than(self.backlog, limit_ns)",
        "late += [(c, b) for c, b in self.backlog.items() if b.submitted_ns <= limit_ns]", "charged",
    ),
    Bug(
        "lost-region", "memory lent to a driver is taken away when the driver dies, though its requests are reissued",
        Reclaimer, "crashed", "kept = self._services.forwarders.lent_to(agent) | pool_caps(machine, agent)",
        "kept = pool_caps(machine, agent)", "clients",
    ),
    Bug(
        "off-by-one", "the last request of the backlog is forgotten when the driver dies",
        RequestTable, "on_death", "self.backlog = {**kept, **self.backlog}",
        "self.backlog = {**kept, **dict(list(self.backlog.items())[:-1])}", "queue",
    ),
    Bug(
        "held-back", "an instance that was held back once counts as held back for ever, and heartbeats spare it",
        KernelAgent, "turn", "        self.held_back = False\n", "", "charged",
    ),
    Bug(
        "lost-wake-up", "an instance that dies while it is held back is never woken again",
        KernelAgent, "_end", "        self._bell.need_wakeup = True\n", "", "charged",
    ),
    Bug(
        "stale-generation", "what a dead incarnation had said takes effect after its death",
        KernelAgent, "_act_later", "if incarnation == self.incarnation:", "if incarnation >= 0:", "charged",
    ),
    Bug(
        "not-released", "commands of a dead client count as open for ever",
        KernelAgent, "_end", "        self.machine.outstanding -= len(self.commands)\n", "", "clients",
    ),
    Bug(
        "flush-reordered", "a flush under way is taken to serve those who ask for one meanwhile",
        FlushMachine, "_kick", "        if self.under_way or not self._next:\n",
        "        if self.under_way:\n            self._running, self._next = [*self._running, *self._next], []\n"
        "        if self.under_way or not self._next:\n", "journal",
    ),
    Bug(
        "hash-order", "tasks' output is taken in the order of a hash of names, not of numbers",
        Dispatcher, "_collect", "sorted(dirty)", "sorted(dirty, key=lambda n: hash(dirty[n].name))", "clients",
    ),
)  # fmt: skip


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """The code with the mistake, while the block lasts."""
    good: Callable[..., Any] = bug.owner.__dict__[bug.method]
    source = textwrap.dedent(inspect.getsource(good))
    right, wrong = (re.sub(r"(?m)^    ", "", text) for text in (bug.right, bug.wrong))
    assert source.count(right) == 1, f"{bug.name}: {bug.owner.__name__}.{bug.method} has changed: plant it anew"
    names: dict[str, Any] = {}
    scope = good.__globals__
    exec(compile(source.replace(right, wrong), f"<planted {bug.name}>", "exec"), scope, names)
    setattr(bug.owner, bug.method, names[bug.method])
    try:
        yield
    finally:
        setattr(bug.owner, bug.method, good)


# --- looking for them ------------------------------------------------------------------------------------------


class Score(NamedTuple):
    """How a mistake was found."""

    bug: Bug
    seeds: int
    found: dict[int, tuple[str, ...]]
    """By seed, the invariants that broke."""
    first: tuple[Trial, Outcome, int] | None
    """The first of them, shrunk; and the runs that took."""

    @property
    def invariants(self) -> list[str]:
        """What found it, the most frequent first."""
        return [name for name, _ in Counter(name for names in self.found.values() for name in names).most_common()]


def look_for(bug: Bug, seeds: range, *, shrink_runs_max: int = 30) -> Score:
    """Explores with the mistake planted; what a run looks like is learnt without it."""
    explorer = Explorer(cast_of.scenario(bug.scenario), seeds[0])
    assert explorer.plain_outcome.good, explorer.plain_outcome.broken
    if bug.name == "hash-order":
        everywhere = [_hashes_elsewhere(bug, seeds, hash_seed) for hash_seed in HASH_SEEDS]
        differ = [seed for seed in seeds if len({hashes[seed] for hashes in everywhere}) > 1]
        return Score(bug, len(seeds), dict.fromkeys(differ, ("same-hash",)), None)
    found: dict[int, tuple[str, ...]] = {}
    first: tuple[Trial, Outcome, int] | None = None
    with planted(bug):
        for seed in seeds:
            trial = explorer.trial(seed)
            outcome = explorer.run(trial)
            if outcome.good:
                continue
            found[seed] = tuple(outcome.broken)
            if first is None and shrink_runs_max:
                finding = explorer.shrunk(trial, outcome, shrink_runs_max)
                first = (finding.shrunk, finding.shrunk_outcome, finding.shrink_runs)
    return Score(bug, len(seeds), found, first)


def _hashes_elsewhere(bug: Bug, seeds: range, hash_seed: int) -> dict[int, str]:
    """Event hashes of the same trials in another process, with another hash seed."""
    words = [
        sys.executable,
        __file__,
        "--hashes",
        "--bug",
        bug.name,
        "--start",
        str(seeds[0]),
        "--seeds",
        str(len(seeds)),
    ]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(HERE.parent.parent)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {int(seed): digest for seed, digest in (line.split() for line in done.stdout.splitlines())}


def print_hashes(bug: Bug, seeds: range) -> None:
    explorer = Explorer(cast_of.scenario(bug.scenario), seeds[0])
    with planted(bug):
        for seed in seeds:
            print(seed, explorer.run(explorer.trial(seed)).event_hash)


def _short(fault: Fault) -> str:
    """A fault in a cell of the table."""
    rest = [line.replace(" = ", "=").replace('"', "") for line in fault_lines(fault)]
    return " ".join((fault.kind, fault.module, *(w for w in rest if not w.startswith(("kind=", "module=", "name=")))))


def table(scores: list[Score]) -> str:
    """Markdown."""
    lines = ["| mistake | found by | seeds | the first, shrunk |", "| --- | --- | --- | --- |"]
    for score in scores:
        plan = "two processes, any seed" if score.bug.name == "hash-order" else "-"
        if score.first is not None:
            faults = [_short(fault) for fault in score.first[0].faults]
            plan = " and ".join(f"`{text}`" for text in faults) or "no fault at all"
        names = ", ".join(f"`{name}`" for name in score.invariants[:2])
        lines.append(f"| {score.bug.says} | {names} | {len(score.found)} of {score.seeds} | {plan} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Plants mistakes and looks for them.")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--bug", choices=[bug.name for bug in BUGS])
    parser.add_argument("--hashes", action="store_true", help="print event hashes only")
    parser.add_argument("--write", type=Path, help="a document whose table is written anew")
    parser.add_argument("--no-shrink", action="store_true", help="count only")
    args = parser.parse_args()
    seeds = range(args.start, args.start + args.seeds)
    bugs = [bug for bug in BUGS if args.bug in (None, bug.name)]
    if args.hashes:
        print_hashes(bugs[0], seeds)
        return
    scores = []
    for bug in bugs:
        scores.append(look_for(bug, seeds, shrink_runs_max=0 if args.no_shrink else 30))
        print(table(scores).splitlines()[-1], flush=True)
    if args.write:
        text = args.write.read_text()
        begin, end = "<!-- planted -->\n", "<!-- /planted -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        args.write.write_text(f"{head}{begin}\n{table(scores)}\n\n{end}{tail}")


if __name__ == "__main__":
    main()
