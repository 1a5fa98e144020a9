"""Decision forms to bytecode: r1 = address of the features and of the zero after them, r0 = the verdict.

No maps, no helpers, no loops, but for wide nets (``tablecode``).  r2, with r0 or r3, is for numbers on their way; r3 to
r9 hold the sums of a forest.
Sums begin with the zero from memory, not with an immediate: otherwise each path through a forest would have a constant
of its own, which Linux follows to the end (a million instructions for three trees); now all paths look alike, and are
followed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from uxk.bpf import insn as i
from uxk.bpf.compiler.emitter import IMM_MAX, IMM_MIN, NEAR_MAX, Emitter
from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.forms import (
    Bayes,
    Dense,
    Forest,
    Form,
    Leaf,
    Linear,
    Node,
    Score,
    Split,
    Tabled,
    Term,
    Tree,
    nodes,
)
from uxk.bpf.compiler.tablecode import tabled
from uxk.bpf.insn import FRAME

SUMS: Final = (3, 4, 5, 6, 7, 8, 9)
"""Registers for the votes of a forest."""
STACK_SLOTS: Final = i.STACK_BYTES // 8
_TOTAL, _X, _T, _MOST, _SUM, _BEST = 0, 2, 3, 4, 5, 6


def generate(form: Form, spare: int) -> bytes:
    """The program; ``spare`` is the slot of the zero.  Raises ``CompileError`` for what is too large."""
    code = Code(spare)
    match form:
        case Tree(root):
            code.tree(root)
        case Forest():
            code.forest(form)
        case Score(linear, values):
            code.linear(linear)
            if values is not None:
                code.sign(values)
            code.emit(i.EXIT_INSN)
        case Dense():
            code.dense(form)
        case Tabled():
            tabled(code, form)
    return code.bytes()


class Code(Emitter):
    """The code of trees, forests, sums and nets."""

    # --- sums ---

    def scaled(self, term: Term) -> None:
        """r2, counted from the low end, becomes the term's share of the sum in r0."""
        if term.coarse:
            self.emit(i.ALU64 | i.RSH, _X, imm=term.coarse)
        if term.mantissa != 1:
            self.emit(i.ALU64 | i.MUL, _X, imm=term.mantissa)
        if term.exponent:
            self.emit(i.ALU64 | (i.LSH if term.exponent > 0 else i.RSH), _X, imm=abs(term.exponent))
        self.emit(i.ALU64 | (i.SUB if term.negative else i.ADD) | i.X, _TOTAL, _X)

    # --- linear models ---

    def linear(self, linear: Linear) -> None:
        """r0 = the value for the features."""
        self.load(_TOTAL, self._spare)
        for term in linear.terms:
            self.load(_X, term.source)
            self.clamp(term.low, term.high)
            self.scaled(term)
        self.add(_TOTAL, linear.bias)
        if linear.shift:
            self.emit(i.ALU64 | i.ARSH, _TOTAL, imm=linear.shift)

    def bayes(self, bayes: Bayes) -> None:
        """r0 = the verdict; r4 is the most so far, r5 the sum, r6 the verdict for the most."""
        for number, (value, base, bells) in enumerate(bayes.classes):
            self.load(_SUM, self._spare)
            self.add(_SUM, base)
            for bell in bells:
                self.linear(bell.distance)
                self.emit(i.JMP | i.JSGE, _TOTAL, off=3)
                self.emit(i.ALU64 | i.MOV, _T)
                self.emit(i.ALU64 | i.SUB | i.X, _T, _TOTAL)
                self.emit(i.ALU64 | i.MOV | i.X, _TOTAL, _T)
                self.emit(i.ALU64 | i.MUL | i.X, _TOTAL, _TOTAL)
                self.emit(i.ALU64 | i.RSH, _TOTAL, imm=bell.shift)
                self.emit(i.ALU64 | i.SUB | i.X, _SUM, _TOTAL)
            if number:
                self.emit(i.JMP | i.JSLE | i.X, _SUM, _MOST, 2 if IMM_MIN <= value <= IMM_MAX else 3)
            self.emit(i.ALU64 | i.MOV | i.X, _MOST, _SUM)
            self.constant(_BEST, value)
        self.emit(i.ALU64 | i.MOV | i.X, _TOTAL, _BEST)

    # --- trees ---

    def tree(self, root: Node) -> None:
        """Each leaf returns."""
        self._walk(root, None)

    def forest(self, forest: Forest) -> None:
        """Each leaf adds its votes; two classes share one sum, of the second's votes less the first's."""
        if not forest.values:
            self._sum_of_trees(forest)
            return
        classes = len(forest.values)
        if classes > len(SUMS):
            raise CompileError(f"a forest of {classes} classes; at most {len(SUMS)}, one register each")
        sums = SUMS[: 1 if classes == 2 else classes]
        for register in sums:
            self.load(register, self._spare)
        for root in forest.trees:
            end = self.place()
            self._walk(root, end, sums)
            self.here(end)
        if classes == 2:
            self.emit(i.ALU64 | i.MOV | i.X, _TOTAL, sums[0])
            self.sign(forest.values)
        else:
            self.most(sums, forest.values)
        self.emit(i.EXIT_INSN)

    def _sum_of_trees(self, forest: Forest) -> None:
        """Of a median, each tree's answer goes to the stack, where a network of comparisons sorts them."""
        self.load(_MOST, self._spare)
        for number, root in enumerate(forest.trees):
            if number and forest.median:
                self.load(_MOST, self._spare)
            end = self.place()
            self._walk(root, end)
            self.here(end)
            if forest.median:
                self.emit(i.STX | i.DW | i.MEM, FRAME, _MOST, -8 * (1 + number))
        if forest.median:
            for a, b in comparisons(len(forest.trees)):
                self.emit(i.LDX | i.DW | i.MEM, _X, FRAME, -8 * (1 + a))
                self.emit(i.LDX | i.DW | i.MEM, _T, FRAME, -8 * (1 + b))
                self.emit(i.JMP | i.JSLE | i.X, _X, _T, 2)
                self.emit(i.STX | i.DW | i.MEM, FRAME, _T, -8 * (1 + a))
                self.emit(i.STX | i.DW | i.MEM, FRAME, _X, -8 * (1 + b))
            self.load(_MOST, self._spare)
            for place in forest.middle:
                self.emit(i.LDX | i.DW | i.MEM, _X, FRAME, -8 * (1 + place))
                self.emit(i.ALU64 | i.ADD | i.X, _MOST, _X)
        self.emit(i.ALU64 | i.MOV | i.X, _TOTAL, _MOST)
        self.add(_TOTAL, forest.rounding)
        if forest.shift:
            self.emit(i.ALU64 | i.ARSH, _TOTAL, imm=forest.shift)
        self.emit(i.EXIT_INSN)

    def most(self, sums: Sequence[int], values: Sequence[int]) -> None:
        """r0 = the value of the first of the largest registers; the first of them is lost."""
        self.constant(_TOTAL, values[0])
        for register, value in zip(sums[1:], values[1:], strict=True):
            self.emit(i.JMP | i.JSLE | i.X, register, sums[0], 2 if IMM_MIN <= value <= IMM_MAX else 3)
            self.emit(i.ALU64 | i.MOV | i.X, sums[0], register)
            self.constant(_TOTAL, value)

    def _walk(self, root: Node, end: int | None, sums: Sequence[int] = ()) -> None:
        """A tree in the order of its nodes: the way that is deeper follows its split, the other is jumped to.

        Python made of this is nested only as often as ways are jumped to.
        """
        size, height = _measure(root, len(sums))
        far = size > NEAR_MAX
        pending: list[tuple[Node, int | None, int | None]] = [(root, None, None)]
        while pending:
            node, place, held = pending.pop()
            if place is not None:
                self.here(place)
            if isinstance(node, Leaf):
                self._leaf(node, end, sums, far=far, last=not pending)
                continue
            if held != node.slot:
                self.load(_X, node.slot)
            other = self.place()
            left_first = height[id(node.left)] >= height[id(node.right)]
            follows, jumped = (node.left, node.right) if left_first else (node.right, node.left)
            not_left, is_left = (i.JNE, i.JEQ) if node.equal else (i.JSGT, i.JSLE)
            op, opposite = (not_left, is_left) if left_first else (is_left, not_left)
            self.jump_if(op, opposite, node.threshold, other, far=far)
            pending += [(jumped, other, node.slot), (follows, None, node.slot)]

    def _leaf(self, leaf: Leaf, end: int | None, sums: Sequence[int], *, far: bool, last: bool) -> None:
        value = leaf.value
        if leaf.votes:
            votes = (leaf.votes[1] - leaf.votes[0],) if len(sums) == 1 else leaf.votes
            for register, vote in zip(sums, votes, strict=True):
                self.add(register, vote)
            if not last and end is not None:
                self.goto(end, far=far)
            return
        if end is not None:
            if isinstance(value, Linear):
                self.linear(value)
                self.emit(i.ALU64 | i.ADD | i.X, _MOST, _TOTAL)
            elif isinstance(value, int):
                self.add(_MOST, value)
            if not last:
                self.goto(end, far=far)
            return
        if isinstance(value, Linear):
            self.linear(value)
        elif isinstance(value, Bayes):
            self.bayes(value)
        else:
            self.constant(_TOTAL, value)
        self.emit(i.EXIT_INSN)

    # --- nets ---

    def dense(self, net: Dense) -> None:
        """Inputs and values of layers lie on the stack, in turns from both ends of it."""
        ranges = {term.source: term for neuron in net.layers[0] for term in neuron.terms}
        given = {source: 1 + n for n, source in enumerate(sorted(ranges))}
        for source, place in given.items():
            self.load(_X, source)
            self.clamp(ranges[source].low, ranges[source].high)
            self.emit(i.STX | i.DW | i.MEM, FRAME, _X, -8 * place)
        for number, layer in enumerate(net.layers):
            if len(given) + len(layer) > STACK_SLOTS:
                raise CompileError(
                    f"layer {number + 1} of the net has {len(given)} inputs and {len(layer)} values; "
                    f"the stack holds {STACK_SLOTS} together"
                )
            taken = {n: STACK_SLOTS - n if number % 2 == 0 else 1 + n for n in range(len(layer))}
            hidden = number < len(net.layers) - 1
            for n, neuron in enumerate(layer):
                self._neuron(neuron, given, hidden=hidden)
                if hidden or len(layer) > 1:
                    self.emit(i.STX | i.DW | i.MEM, FRAME, _TOTAL, -8 * taken[n])
            given = taken
        self.decide(net.values, [given[n] for n in range(len(net.layers[-1]))])
        self.emit(i.EXIT_INSN)

    def _neuron(self, neuron: Linear, given: dict[int, int], *, hidden: bool) -> None:
        self.load(_TOTAL, self._spare)
        for term in neuron.terms:
            self.emit(i.LDX | i.DW | i.MEM, _X, FRAME, -8 * given[term.source])
            self.scaled(term)
        self.add(_TOTAL, neuron.bias)
        if hidden:
            self.cut(neuron.shift)
        elif neuron.shift:
            self.emit(i.ALU64 | i.ARSH, _TOTAL, imm=neuron.shift)


def comparisons(count: int) -> Iterator[tuple[int, int]]:
    """Which two places to put in order, one after the other, so that all are (Batcher; Knuth, TAOCP 3, 5.2.2 M)."""
    top = 1 << (count - 1).bit_length() >> 1
    p = top
    while p:
        q, r, d = top, 0, p
        while True:
            yield from ((a, a + d) for a in range(count - d) if a & p == r)
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1


def _measure(root: Node, sums: int) -> tuple[int, dict[int, int]]:
    """Slots of a tree, at most, and the height of each node by its identity."""
    size, heights = 0, dict[int, int]()
    for node, _ in reversed(list(nodes(root))):
        if isinstance(node, Split):
            heights[id(node)] = 1 + max(heights[id(node.left)], heights[id(node.right)])
            size += 5
        else:
            heights[id(node)] = 0
            size += 3 + sums if isinstance(node.value, int) else 16 * (1 + len(node.value.terms))
            size += 30 * len(node.value.classes) + 16 * len(node.value.terms) if isinstance(node.value, Bayes) else 0
    return size, heights
