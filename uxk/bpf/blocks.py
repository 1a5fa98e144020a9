"""The blocks of a function, and how they hang together, for the translator.

A block that one other leads to is nested in it; one where paths meet (a join, or the head of a loop) stands alone.
"""

from __future__ import annotations

from typing import NamedTuple

from uxk.bpf import insn as i
from uxk.bpf.graph import successors
from uxk.bpf.verifier import Proof

DEPTH_MAX = 60
"""Deepest nesting: Python reads at most 100 levels of indentation."""
COPY_MAX = 3
"""Longest block that is repeated rather than met: the ``exit`` after a verdict."""


class Block(NamedTuple):
    """Slots that run one after the other; ``targets``: the block after the last one, and the one that it jumps to."""

    start: int
    pcs: tuple[int, ...]
    targets: list[int]


def blocks_of(proof: Proof, start: int) -> dict[int, Block]:
    """The blocks of the function at ``start`` that can be reached, by their first slot."""
    leaders, seen, todo = {start}, {start}, [start]
    while todo:
        pc = todo.pop()
        ways = live(proof, pc)
        if len(ways) > 1:
            leaders.update(ways)
        for target in ways:
            if target in seen:
                leaders.add(target)
            else:
                seen.add(target)
                todo.append(target)
    return {leader: _block(proof, leader, leaders) for leader in sorted(leaders)}


def live(proof: Proof, pc: int) -> tuple[int, ...]:
    """Successors that the verifier followed, without repetition."""
    return tuple(dict.fromkeys(target for target in successors(proof.insns, pc) if target in proof.before))


def _block(proof: Proof, leader: int, leaders: set[int]) -> Block:
    pcs, pc = [leader], leader
    while True:
        ways = live(proof, pc)
        if len(ways) != 1 or ways[0] in leaders:
            return Block(leader, tuple(pcs), list(ways))
        pc = ways[0]
        pcs.append(pc)


def heads(proof: Proof, blocks: dict[int, Block], start: int) -> list[int]:
    """The blocks that stand alone, in an order that follows all edges but those of loops: ``start`` is the first."""
    order = _order(blocks, start)
    rank = {leader: number for number, leader in enumerate(order)}
    entries: dict[int, int] = dict.fromkeys(blocks, 0)
    found = {start}
    for block in blocks.values():
        for target in block.targets:
            entries[target] += 1
            if rank[target] <= rank[block.start]:
                found.add(target)
    found |= {leader for leader, count in entries.items() if count > 1 and not copied(proof, blocks[leader])}
    depth: dict[int, int] = {}
    for leader in order:
        own = 0 if leader in found else depth.get(leader, 0)
        if own > DEPTH_MAX:
            found.add(leader)
            own = 0
        for target in blocks[leader].targets:
            depth[target] = max(depth.get(target, 0), own + (len(blocks[leader].targets) > 1))
    return [leader for leader in order if leader in found]


def copied(proof: Proof, block: Block) -> bool:
    """Whether a block is short and ends the function."""
    return len(block.pcs) <= COPY_MAX and proof.insns[block.pcs[-1]].opcode == i.EXIT_INSN


def _order(blocks: dict[int, Block], start: int) -> list[int]:
    seen, finished = {start}, list[int]()
    stack = [(start, iter(blocks[start].targets))]
    while stack:
        leader, targets = stack[-1]
        for target in targets:
            if target not in seen:
                seen.add(target)
                stack.append((target, iter(blocks[target].targets)))
                break
        else:
            finished.append(leader)
            stack.pop()
    return finished[::-1]
