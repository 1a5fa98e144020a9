"""Tasks of instances in the wait-for graph, against what would become of them: who can go on does, until nobody can."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from uxk.core.waitfor import Finding, Node, WaitForGraph, stops

A, B = Node("instance", "a"), Node("instance", "b")


def task(of: Node, *path: int) -> Node:
    return of._replace(tasks=path)


def cycles(found: tuple[Finding, ...]) -> list[Finding]:
    return [each for each in found if each.kind == "cycle"]


@pytest.mark.parametrize(
    ("waiter", "holder", "expected"),
    [
        (A, A, True),
        (A, B, False),
        (task(A, 2, 1), task(A, 3, 1), False),  # siblings
        (task(A, 2, 1), task(A, 2, 1), True),
        (task(A, 2, 1), task(A, 1), True),  # a parent cannot leave before its child
        (task(A, 1), task(A, 2, 1), False),  # but the child before its parent
        (A, task(A, 2, 1), True),
        (task(A, 2, 1), A, True),
        (Node("kernel", "a"), A, False),
    ],
)  # fmt: skip
def test_who_stops_whom(waiter: Node, holder: Node, expected: bool) -> None:
    assert stops(waiter, holder) is expected


def test_two_locks_taken_crosswise_by_different_tasks_are_no_deadlock() -> None:
    graph = WaitForGraph()
    assert graph.add(task(A, 2, 1), task(B, 2, 1), "lock one", 1) == ()
    assert graph.add(task(B, 3, 1), task(A, 3, 1), "lock two", 2) == ()
    assert [str(edge.waiter) for edge in graph.waiting_for(A)] == ["task 2 of instance a"]
    (found,) = graph.add(task(B, 2, 1), task(A, 2, 1), "lock two", 3)
    assert "#0 task 2 of instance b waits for lock two" in found.text
    assert "held by task 2 of instance a" in found.text
    assert "unless" not in found.text
    assert graph.remove_node(A) == 3


def test_a_child_that_waits_keeps_its_parents_lock() -> None:
    graph = WaitForGraph()
    graph.add(task(B, 1), task(A, 1), "lock one", 1)
    assert len(graph.add(task(A, 4, 2, 1), task(B, 1), "lock two", 2)) == 1


def test_an_answer_may_be_in_the_hands_of_any_task_that_waits_and_the_report_says_so() -> None:
    graph = WaitForGraph()
    graph.add(task(A, 2, 1), B, "request 7", 1)
    (found,) = graph.add(task(B, 5, 1), task(A, 2, 1), "lock x", 2)
    assert "   unless another task of instance b gives request 7" in found.text.splitlines()


def test_a_decision_that_waits_for_a_task_waits_for_an_extension() -> None:
    (found,) = WaitForGraph().add(Node("kernel", "lfs"), task(A, 2, 1), "lock", 1, decision=True)
    assert found.kind == "blocking-decision"


PATHS = [(), (1,), (2, 1), (3, 1), (4, 2, 1), (5, 1)]
INSTANCES = [Node("instance", name) for name in "abc"]
TASKS = [of._replace(tasks=path) for of in INSTANCES for path in PATHS]
LOCKS = ["l0", "l1", "l2"]


def _free(who: Node, waiting: set[Node]) -> bool:
    """Neither it nor a child of it waits, nor its instance as a whole, which is free if none of its tasks waits."""
    mine = [other for other in waiting if other.name == who.name]
    return not any(not other.tasks or not who.tasks or who.tasks[0] in other.tasks for other in mine)


class World(RuleBasedStateMachine):
    """Tasks that take locks first come first served, and wait for answers.

    What the graph says is held against the fate of everybody: who can go on gives back all that it has and is done, as
    often as that changes anything.  An answer comes when nobody in the instance is left who might have it in hand.
    """

    @initialize()
    def start(self) -> None:
        self.graph = WaitForGraph()
        self.held: dict[str, Node] = {}
        self.queues: dict[str, list[Node]] = {lock: [] for lock in LOCKS}
        self.asked: dict[Node, Node] = {}
        self.edges: list[tuple[Node, Node, str]] = []
        self.deadlocked = False
        self.now_ns = 0

    def waits(self, who: Node) -> bool:
        return who in self.asked or any(who in queue for queue in self.queues.values())

    def draw(self) -> bool:
        """Brings the graph in line; whether it found a cycle."""
        wanted: list[tuple[Node, Node, str]] = []
        for lock, queue in self.queues.items():
            ahead = [self.held[lock], *queue] if lock in self.held else list(queue)
            wanted += [(late, early, lock) for early, late in pairwise(ahead)]
        wanted += [(who, of, "answer") for who, of in self.asked.items()]
        for edge in [edge for edge in self.edges if edge not in wanted]:
            assert self.graph.remove(*edge)
        found = False
        for edge in [edge for edge in wanted if edge not in self.edges]:
            self.now_ns += 1
            found |= bool(cycles(self.graph.add(*edge, self.now_ns)))
        self.edges = wanted
        return found

    def nobody_is_stuck(self) -> bool:
        """Lets everybody go on who can; no look at the graph."""
        held, asked = dict(self.held), dict(self.asked)
        queues = {lock: list(queue) for lock, queue in self.queues.items()}
        while True:
            waiting = {*asked, *(who for queue in queues.values() for who in queue)}
            if not waiting:
                return True
            answered = [who for who, of in asked.items() if _free(of, waiting)]
            let_go = [lock for lock, who in held.items() if queues[lock] and _free(who, waiting)]
            if not (answered or let_go):
                return False
            for who in answered:
                del asked[who]
            for lock in let_go:
                held[lock] = queues[lock].pop(0)

    def settle(self, found: bool) -> None:
        assert found is not self.nobody_is_stuck(), (self.held, self.queues, self.asked)
        self.deadlocked = found

    @precondition(lambda self: not self.deadlocked)
    @rule(data=st.data(), lock=st.sampled_from(LOCKS))
    def take(self, data: st.DataObject, lock: str) -> None:
        users = [self.held[lock], *self.queues[lock]] if lock in self.held else []
        names = {user.name for user in users}  # a lock is an instance's: EDEADLK, EALREADY
        able = [who for who in TASKS if not self.waits(who) and who.name not in names]
        if not able:
            return
        who = data.draw(st.sampled_from(able))
        if lock in self.held:
            self.queues[lock].append(who)
        else:
            self.held[lock] = who
        self.settle(self.draw())

    @precondition(lambda self: not self.deadlocked)
    @rule(data=st.data(), of=st.sampled_from(INSTANCES))
    def ask(self, data: st.DataObject, of: Node) -> None:
        able = [who for who in TASKS if not self.waits(who) and who.name != of.name]
        if able:
            self.asked[data.draw(st.sampled_from(able))] = of
            self.settle(self.draw())

    @precondition(lambda self: not self.deadlocked and bool(self.held))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lock = data.draw(st.sampled_from(sorted(self.held)))
        del self.held[lock]
        if self.queues[lock]:
            self.held[lock] = self.queues[lock].pop(0)
        self.settle(self.draw())

    @precondition(lambda self: not self.deadlocked and bool(self.asked))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        del self.asked[data.draw(st.sampled_from(sorted(self.asked)))]
        self.settle(self.draw())

    @precondition(lambda self: bool(self.held) or bool(self.asked))
    @rule(of=st.sampled_from(INSTANCES))
    def die(self, of: Node) -> None:
        """All that it had and waited for goes; what others ask of it is asked anew of whoever comes after it."""
        self.asked = {who: by for who, by in self.asked.items() if of.name not in (who.name, by.name)}
        for lock in LOCKS:
            self.queues[lock] = [who for who in self.queues[lock] if who.name != of.name]
            if lock in self.held and self.held[lock].name == of.name:
                del self.held[lock]
            if lock not in self.held and self.queues[lock]:
                self.held[lock] = self.queues[lock].pop(0)
        self.draw()
        self.graph.remove_node(of)
        if self.deadlocked:
            self.deadlocked = not self.nobody_is_stuck()

    @invariant()
    def the_edges_are_those_added(self) -> None:
        shown = [(each.waiter, each.holder, each.resource) for each in self.graph.edges()]
        assert sorted(shown) == sorted(self.edges)


TestWorld = World.TestCase
TestWorld.settings = settings(settings(), max_examples=max(100, settings().max_examples))
