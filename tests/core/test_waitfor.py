from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from uxk.core import waitfor
from uxk.core.waitfor import Edge, Node, WaitForGraph

K = Node("kernel", "lfs")
T = Node("task", "writeback")
A, B, C = (Node("instance", name) for name in "abc")


def chained(edges: tuple[Edge, ...]) -> bool:
    return all(left.holder == right.waiter for left, right in pairwise(edges))


def test_a_cycle_is_found_when_it_closes_and_every_edge_is_named() -> None:
    graph = WaitForGraph()
    assert graph.add(A, B, "lock 1", 1_000_000, via="token 7") == ()
    assert graph.add(B, C, "lock two", 2_000_500) == ()
    (found,) = graph.add(C, A, "request 9", 3_000_000)
    assert found.kind == "cycle"
    assert [str(edge.waiter) for edge in found.edges] == ["instance c", "instance a", "instance b"]
    assert found.text.splitlines() == [
        "-" * 72,
        "deadlock: a cycle of 3 waits, found at 3000.000 us",
        "-" * 72,
        "#0 instance c waits for request 9 since 3000.000 us, held by instance a (waiting for 0.000 us)",
        "#1 instance a waits for lock 1 since 1000.000 us, held by instance b (token 7) (waiting for 2000.000 us)",
        "#2 instance b waits for lock two since 2000.500 us, held by instance c (waiting for 999.500 us)",
        "   each waits for the next and the last for the first; the first wait closed the cycle",
        "-" * 72,
    ]
    assert graph.statistics().cycles == 1


def test_the_same_wait_twice_needs_two_removals_and_tells_once() -> None:
    graph = WaitForGraph()
    graph.add(A, B, "x", 1)
    assert len(graph.add(B, A, "y", 2)) == 1
    assert graph.add(B, A, "y", 3) == ()
    assert len(graph.add(B, A, "z", 4)) == 1, "another resource closes another cycle"
    assert graph.remove(B, A, "y")
    assert [edge.count for edge in graph.waiting_for(B)] == [1, 1]
    assert graph.remove(B, A, "y")
    assert not graph.remove(B, A, "y")
    assert graph.remove(B, A, "z")
    assert graph.add(B, C, "y", 5) == ()


def test_waiting_for_oneself_is_a_cycle_of_one() -> None:
    (found,) = WaitForGraph().add(A, A, "lock", 5)
    assert len(found.edges) == 1
    assert "a cycle of 1 wait," in found.text


def test_a_writer_that_waits_for_two_readers_deadlocks_with_either() -> None:
    graph = WaitForGraph()
    graph.add(A, B, "lock", 1)
    graph.add(A, C, "lock", 1)
    assert [edge.holder for edge in graph.waiting_for(A)] == [B, C]
    (found,) = graph.add(C, A, "queue slot", 2)
    assert [edge.waiter for edge in found.edges] == [C, A]


def test_the_kernel_may_wait_for_an_extension_but_not_to_decide() -> None:
    graph = WaitForGraph()
    assert graph.add(K, A, "read of block 7", 1) == ()
    assert graph.add(T, A, "hint", 1, decision=True) == (), "a task may"
    (found,) = graph.add(K, A, "hint", 2, decision=True)
    assert found.kind == "blocking-decision"
    assert "kernel lfs waits for hint, to decide since 0.002 us, held by instance a" in found.text
    assert "kernel lfs may not decide later because of instance a" in found.text
    assert graph.statistics().blocking_decisions == 1


def test_a_decision_may_not_wait_for_an_extension_through_others_either() -> None:
    graph = WaitForGraph()
    graph.add(T, A, "write", 1)
    (found,) = graph.add(K, T, "clean segment", 2, decision=True)
    assert [edge.waiter for edge in found.edges] == [K, T]
    later = WaitForGraph()
    assert later.add(K, T, "clean segment", 1, decision=True) == ()
    assert later.add(B, A, "unrelated", 1) == ()
    (found,) = later.add(T, A, "write", 2)
    assert [edge.holder for edge in found.edges] == [T, A]
    assert later.add(A, B, "more", 3)[0].kind == "cycle"
    assert later.add(T, C, "write", 4) == (), "told once per wait"


def test_a_wait_that_turns_into_a_decision_is_found() -> None:
    graph = WaitForGraph()
    assert graph.add(K, A, "answer", 1) == ()
    assert graph.add(K, A, "answer", 2, decision=True)[0].kind == "blocking-decision"
    assert graph.add(K, A, "answer", 3, decision=True) == ()


def test_a_decision_and_a_deadlock_are_both_told() -> None:
    graph = WaitForGraph()
    graph.add(A, K, "completion", 1)
    assert [found.kind for found in graph.add(K, A, "hint", 2, decision=True)] == ["cycle", "blocking-decision"]


def test_a_dead_node_takes_its_edges_along() -> None:
    graph = WaitForGraph()
    graph.add(A, B, "x", 1)
    graph.add(B, C, "y", 1)
    graph.add(B, B, "z", 1)
    assert graph.remove_node(B) == 3
    assert graph.remove_node(B) == 0
    assert graph.edges() == []
    assert not graph.remove(A, B, "x")
    assert graph.add(C, A, "w", 2) == ()


def test_too_many_edges_are_counted_and_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waitfor, "EDGES_MAX", 2)
    graph = WaitForGraph()
    for name in "xyz":
        assert graph.add(A, B, name, 1) == ()
    assert len(graph) == 2
    assert graph.statistics().overflow == 1
    assert not graph.remove(A, B, "z")


def test_a_long_chain_needs_no_recursion() -> None:
    graph = WaitForGraph()
    nodes = [Node("task", str(n)) for n in range(5000)]
    for left, right in pairwise(nodes):
        assert graph.add(left, right, "next", 1) == ()
    assert len(graph.add(nodes[-1], nodes[0], "next", 2)[0].edges) == 5000


_PROGRAM = """
from uxk.core.waitfor import Node, WaitForGraph
graph = WaitForGraph()
nodes = [Node("instance", f"n{i}") for i in range(12)]
for step in range(200):
    for found in graph.add(nodes[step * 7 % 12], nodes[(step * 5 + 3) % 12], f"r{step % 5}", step):
        print(found.text)
print(graph.statistics())
"""


def test_findings_do_not_depend_on_the_hash_seed() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(outputs) == 1
    assert b"deadlock" in outputs.pop()


NODES = [K, Node("kernel", "mm"), T, A, B, C]
NODE = st.sampled_from(NODES)
RESOURCE = st.sampled_from(["r", "s"])
Key = tuple[Node, Node, str]


class GraphMachine(RuleBasedStateMachine):
    """Against the transitive closure, computed from scratch each time."""

    @initialize()
    def start(self) -> None:
        self.graph = WaitForGraph()
        self.counts: dict[Key, int] = {}
        self.decisions: set[Key] = set()
        self.told: set[Key] = set()
        self.now_ns = 0

    def _closure(self) -> set[tuple[Node, Node]]:
        reach = {(node, node) for node in NODES} | {(left, right) for left, right, _ in self.counts}
        for middle in NODES:
            reach |= {(a, d) for a, b in reach if b == middle for c, d in reach if c == middle}
        return reach

    def _blocked(self) -> set[Key]:
        reach = self._closure()
        return {key for key in self.decisions if any((key[1], node) in reach for node in (A, B, C))}

    @rule(waiter=NODE, holder=NODE, resource=RESOURCE, decision=st.booleans())
    def add(self, waiter: Node, holder: Node, resource: str, decision: bool) -> None:
        self.now_ns += 1
        key = (waiter, holder, resource)
        closes = key not in self.counts and (holder, waiter) in self._closure()
        self.counts[key] = self.counts.get(key, 0) + 1
        if decision and waiter.kind == "kernel":
            self.decisions.add(key)
        found = self.graph.add(waiter, holder, resource, self.now_ns, decision=decision)
        assert [each.kind for each in found if each.kind == "cycle"] == ["cycle"] * closes
        newly = self._blocked() - self.told
        assert {self._key(each.edges[0]) for each in found if each.kind == "blocking-decision"} == newly
        self.told |= newly
        for each in found:
            assert chained(each.edges)
            assert all(self._key(edge) in self.counts for edge in each.edges)
            assert all(str(edge) in each.text for edge in each.edges)
            if each.kind == "cycle":
                assert each.edges[-1].holder == each.edges[0].waiter
                assert self._key(each.edges[0]) == key
                assert len({edge.waiter for edge in each.edges}) == len(each.edges)
            else:
                assert each.edges[-1].holder.kind == "instance"

    @staticmethod
    def _key(edge: Edge) -> Key:
        return (edge.waiter, edge.holder, edge.resource)

    @rule(waiter=NODE, holder=NODE, resource=RESOURCE)
    def remove(self, waiter: Node, holder: Node, resource: str) -> None:
        key = (waiter, holder, resource)
        assert self.graph.remove(*key) is (key in self.counts)
        if key in self.counts:
            self.counts[key] -= 1
            if not self.counts[key]:
                self._forget(key)

    @rule(node=NODE)
    def remove_node(self, node: Node) -> None:
        doomed = [key for key in self.counts if node in key[:2]]
        assert self.graph.remove_node(node) == len(doomed)
        for key in doomed:
            self._forget(key)

    def _forget(self, key: Key) -> None:
        del self.counts[key]
        self.decisions.discard(key)
        self.told.discard(key)

    @invariant()
    def the_edges_are_those_added(self) -> None:
        assert {self._key(edge): edge.count for edge in self.graph.edges()} == self.counts
        for node in NODES:
            assert [self._key(e) for e in self.graph.waiting_for(node)] == [k for k in self.counts if k[0] == node]


TestGraph = GraphMachine.TestCase
