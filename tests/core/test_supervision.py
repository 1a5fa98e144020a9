"""Trees of supervisors against a small model of OTP's: synchronous, recursive, with lists."""

from __future__ import annotations

import errno
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uxk.core.supervision import DEPTH_MAX, Leave, Start, Step, Stop, Supervision, Tell, Wait
from uxk.errors import UsageError
from uxk.uapi.manifest import Restart as Mode
from uxk.uapi.supervisor import STRATEGIES, Strategy, SupervisorSpec

FAR = 10**12


def spec(name: str, *children: str, **settings: Any) -> SupervisorSpec:
    return SupervisorSpec(name=name, children=children, **settings)


def words(steps: list[Step]) -> list[str]:
    """Steps in short: -a stops, xa leaves, +a starts, the rest is talk."""
    sign = {Stop: "-", Leave: "x", Start: "+"}
    return [sign[type(step)] + step.name for step in steps if isinstance(step, (Stop, Leave, Start))]


class Driver:
    """Does the steps of a tree at once; children in ``failing`` die as often as it says when they are started."""

    def __init__(self, tree: Supervision) -> None:
        self.tree = tree
        self.now_ns = 0
        self.failing: dict[str, int] = {}
        self.done: list[str] = []

    def exit(self, name: str, *, crashed: bool = True) -> list[str]:
        self.done = []
        todo: deque[Step] = deque(self.tree.exited(self.now_ns, name, crashed=crashed, why="test"))
        while todo:
            step = todo.popleft()
            self.done += words([step])
            if isinstance(step, Wait):
                todo.extend(self.tree.due(step.batch))
            elif isinstance(step, Start):
                if self.failing.get(step.name, 0):
                    self.failing[step.name] -= 1
                    todo.extend(self.tree.exited(self.now_ns, step.name, crashed=True, why="start"))
                else:
                    todo.extend(self.tree.started(step.name))
        return self.done


def three(strategy: Strategy, **settings: Any) -> Driver:
    tree = Supervision()
    tree.add(spec("top", "a", "b", "c", strategy=strategy, **settings), dict.fromkeys("abc", "permanent"))
    return Driver(tree)


# --- strategies ---


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("one_for_one", ["+b"]),
        ("rest_for_one", ["-c", "+b", "+c"]),
        ("one_for_all", ["-c", "-a", "+a", "+b", "+c"]),
    ],
)
def test_strategies_stop_in_reverse_and_start_in_order(strategy: Strategy, expected: list[str]) -> None:
    assert three(strategy).exit("b") == expected


def test_the_next_is_started_only_when_the_one_before_is_up() -> None:
    tree = three("one_for_all").tree
    steps = tree.exited(0, "b", crashed=True, why="test")
    wait = steps[-1]
    assert words(steps) == ["-c", "-a"] and isinstance(wait, Wait) and wait.delay_ns == 1_000_000
    assert words(tree.due(wait.batch)) == ["+a"]
    assert tree.pending(tree.groups["top"]) == ["a", "b", "c"]
    assert words(tree.started("a")) == ["+b"]
    assert words(tree.started("a")) == [], "told twice"
    assert words(tree.started("b")) == ["+c"] and tree.started("c") == []
    assert tree.due(wait.batch) == [] and tree.pending(tree.groups["top"]) == []


def test_a_death_on_the_way_begins_again_and_keeps_the_order() -> None:
    tree = three("rest_for_one").tree
    first = tree.exited(0, "a", crashed=True, why="test")[-1]
    assert isinstance(first, Wait)
    tree.due(first.batch)
    tree.started("a")
    steps = tree.exited(5, "b", crashed=True, why="test")  # it failed to start; c has not been started yet
    again = steps[-1]
    assert words(steps) == [] and isinstance(again, Wait) and again.delay_ns == 2_000_000
    assert tree.due(first.batch) == []
    assert words(tree.due(again.batch)) == ["+b"] and words(tree.started("b")) == ["+c"]


def test_independent_restarts_do_not_wait_for_each_other() -> None:
    tree = three("one_for_one", max_restarts=9).tree
    waits = [tree.exited(0, name, crashed=True, why="test")[-1] for name in "ab"]
    assert [words(tree.due(wait.batch)) for wait in waits if isinstance(wait, Wait)] == [["+a"], ["+b"]]


@pytest.mark.parametrize(("mode", "crashed"), [("temporary", True), ("temporary", False), ("transient", False)])
def test_who_is_not_started_again_leaves(mode: Mode, crashed: bool) -> None:
    tree = Supervision()
    tree.add(spec("top", "a", "b", strategy="one_for_all"), {"a": mode, "b": "permanent"})
    assert Driver(tree).exit("a", crashed=crashed) == ["xa"] and "a" not in tree
    assert Driver(tree).exit("b") == ["+b"]


def test_a_temporary_sibling_is_not_started_again() -> None:
    tree = Supervision()
    tree.add(spec("top", "a", "t", "b", strategy="one_for_all"), {"a": "permanent", "t": "temporary", "b": "transient"})
    assert Driver(tree).exit("a") == ["-b", "xt", "+a", "+b"]


# --- intensity and escalation ---


def test_giving_up_at_the_top_takes_all_down_in_order() -> None:
    driver = three("one_for_one", max_restarts=1)
    driver.exit("b")
    steps = driver.tree.exited(0, "b", crashed=True, why="test")
    assert words(steps) == ["xc", "xb", "xa"] and driver.tree.groups == {} and "a" not in driver.tree
    assert isinstance(steps[0], Tell) and steps[0].grave and "2 exits within" in steps[0].text


def test_giving_up_escalates_and_the_parent_restarts_the_subtree() -> None:
    tree = Supervision()
    modes: dict[str, Mode] = dict.fromkeys("abcd", "transient")
    tree.add(spec("top", "a", strategy="rest_for_one"), modes)
    tree.add(spec("low", "b", "c", max_restarts=1, parent="top"), modes)
    tree.add(spec("last", "d", parent="top"), modes)
    driver = Driver(tree)
    assert driver.exit("c") == ["+c"]
    assert driver.exit("c") == ["-b", "-d", "+b", "+c", "+d"]
    assert driver.exit("c") == ["+c"], "it was restarted, so it counts from nothing"
    assert driver.exit("a") == ["-d", "-c", "-b", "+a", "+b", "+c", "+d"]
    assert tree.groups["top"].restarts == 2 and tree.groups["low"].restarts == 2


def test_a_child_that_never_starts_exhausts_every_level() -> None:
    tree = Supervision()
    modes: dict[str, Mode] = dict.fromkeys("ab", "permanent")
    tree.add(spec("top", "a", max_restarts=1), modes)
    tree.add(spec("low", "b", max_restarts=1, parent="top"), modes)
    driver = Driver(tree)
    driver.failing["b"] = 99
    assert driver.exit("b") == ["+b", "+b", "+b", "xb", "xa"]
    assert tree.groups == {}


def test_a_quiet_period_forgives() -> None:
    driver = three("one_for_one", max_restarts=1, period_ns=1000)
    for _ in range(5):
        assert driver.exit("a") == ["+a"]
        driver.now_ns += 10_000_000


# --- making and changing ---


@pytest.mark.parametrize(
    ("wrong", "number", "words_"),
    [
        (spec("top"), errno.EEXIST, "exists already"),
        (spec("new", "a"), errno.EEXIST, "a is supervised by top"),
        (spec("new", "d", "d"), errno.EINVAL, "named twice"),
        (spec("new", "dd"), errno.ENOENT, "no instance 'dd'"),
        (spec("new", parent="tip"), errno.ENOENT, r"no supervisor 'tip' \(did you mean 'top'\?\)"),
        (spec("a/b"), errno.EINVAL, "supervisor: "),
    ],
)
def test_what_cannot_be_is_refused(wrong: SupervisorSpec, number: int, words_: str) -> None:
    tree = three("one_for_one").tree
    with pytest.raises(UsageError, match=words_) as caught:
        tree.add(wrong, dict.fromkeys("abcd", "permanent"))
    assert caught.value.errno == number
    assert list(tree.groups) == ["top"] and "d" not in tree


def test_depth_is_bounded() -> None:
    tree, above = Supervision(), ""
    for level in range(DEPTH_MAX):
        tree.add(spec(f"s{level}", parent=above), {})
        above = f"s{level}"
    with pytest.raises(UsageError, match="at most"):
        tree.add(spec("more", parent=above), {})


def test_who_is_unloaded_is_forgotten_and_nobody_waits_for_it() -> None:
    tree = three("one_for_all").tree
    wait = tree.exited(0, "a", crashed=True, why="test")[-1]
    assert isinstance(wait, Wait)
    assert tree.forget("b") == [] and words(tree.due(wait.batch)) == ["+a"]
    assert words(tree.forget("a")) == ["+c"] and tree.started("c") == []
    assert tree.adopt("b", "permanent") is tree.groups["top"] and tree.adopt("b", "permanent") is None
    tree.adopt("a", "permanent")
    assert Driver(tree).exit("c") == ["-b", "-a", "+a", "+b", "+c"]


def test_removing() -> None:
    tree = three("one_for_one").tree
    tree.add(spec("low", parent="top"), {})
    with pytest.raises(UsageError, match="busy with low"):
        tree.remove("top")
    tree.remove("low")
    tree.exited(0, "a", crashed=True, why="test")
    with pytest.raises(UsageError, match="busy with a"):
        tree.remove("top")
    with pytest.raises(UsageError, match="no supervisor"):
        tree.remove("low")


# --- the model ---


class Model:
    """OTP's algorithm: a supervisor is a list; children are names or supervisors; starts are synchronous."""

    def __init__(self, strategy: Strategy, most: int, above: Model | None) -> None:
        self.strategy, self.most, self.above = strategy, most, above
        self.children: list[str | Model] = []
        self.count = 0

    def owner(self, name: str) -> Model:
        for child in self.children:
            if isinstance(child, Model):
                if name in child.names():
                    return child.owner(name)
            elif child == name:
                return self
        raise KeyError(name)

    def names(self) -> list[str]:
        return [name for child in self.children for name in ([child] if isinstance(child, str) else child.names())]


class Reference:
    """Runs the model; ``modes`` and ``failing`` as the driver has them."""

    def __init__(self, top: Model, modes: dict[str, Mode]) -> None:
        self.top, self.modes = top, modes
        self.up = set(top.names())
        self.failing: dict[str, int] = {}
        self.log: list[str] = []

    def exit(self, name: str) -> list[str]:
        self.log = []
        self.up.discard(name)
        if self.modes[name] == "temporary":
            self.top.owner(name).children.remove(name)
            return [f"x{name}"]
        owner = self.top.owner(name)
        waiting = self.restart(owner, name)
        while waiting:
            name = waiting.pop(0)
            self.log.append(f"+{name}")
            if self.failing.get(name, 0):
                self.failing[name] -= 1
                again = self.restart(self.top.owner(name), name)
                if not self.top.children:
                    return self.log
                order = self.top.names()
                waiting = [each for each in order if each in again or each in waiting]
            else:
                self.up.add(name)
        return self.log

    def restart(self, group: Model, dead: str | Model) -> list[str]:
        """Stops what must be stopped; returns what is to be started."""
        if group.count == group.most:
            return self.give_up(group)
        group.count += 1
        at = group.children.index(dead)
        affected = {"one_for_one": [dead], "rest_for_one": group.children[at:]}.get(group.strategy, group.children)
        names: list[str] = []
        for child in affected:
            if isinstance(child, Model):
                forget(child)
            names += [child] if isinstance(child, str) else child.names()
        for name in reversed(names):
            if self.modes[name] == "temporary":
                self.log.append(f"x{name}")
                self.up.discard(name)
                self.top.owner(name).children.remove(name)
            elif name in self.up:
                self.log.append(f"-{name}")
                self.up.discard(name)
        return [name for name in names if self.modes[name] != "temporary"]

    def give_up(self, group: Model) -> list[str]:
        if group.above is None:
            self.log += [f"x{name}" for name in reversed(group.names())]
            group.children.clear()
            self.up.clear()
            return []
        for name in reversed(group.names()):
            if name in self.up and self.modes[name] != "temporary":
                self.log.append(f"-{name}")
                self.up.discard(name)
        return self.restart(group.above, group)


def forget(group: Model) -> None:
    group.count = 0
    for child in group.children:
        if isinstance(child, Model):
            forget(child)


MODES: tuple[Mode, ...] = ("permanent", "transient", "temporary")
LEVEL = st.tuples(st.sampled_from(STRATEGIES), st.integers(0, 4), st.lists(st.sampled_from(MODES), max_size=4))


@settings(deadline=None, max_examples=300)
@given(
    levels=st.lists(st.tuples(LEVEL, st.integers(0, 3)), min_size=1, max_size=4),
    events=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(0, 3)), max_size=12),
)
def test_against_the_model(levels: list[Any], events: list[tuple[int, int, int]]) -> None:
    """Period and time are such that nothing is forgiven; so counting is all there is to intensity."""
    tree, models, modes = Supervision(), list[Model](), dict[str, Mode]()
    for number, ((strategy, most, kinds), above) in enumerate(levels):
        parent = models[above % number] if number else None
        model = Model(strategy, most, parent)
        for kind in kinds:
            name = f"c{len(modes)}"
            modes[name] = kind
            model.children.append(name)
        if parent is not None:
            parent.children.append(model)
        models.append(model)
        names = tuple(child for child in model.children if isinstance(child, str))
        parent_name = f"s{models.index(parent)}" if parent is not None else ""
        tree.add(
            spec(f"s{number}", *names, strategy=strategy, max_restarts=most, period_ns=FAR, parent=parent_name), modes
        )
    driver, reference = Driver(tree), Reference(models[0], modes)
    for which, failing, times in events:
        alive = models[0].names()
        if not alive:
            break
        for each in (driver.failing, reference.failing):
            each.clear()
            each[alive[failing % len(alive)]] = times
        name = alive[which % len(alive)]
        assert driver.exit(name) == reference.exit(name)
        assert sorted(models[0].names()) == sorted(reference.up)
        for group in tree.groups.values():
            assert tree.pending(group) == []
            assert all(leaf.runs for leaf in group.leaves())
