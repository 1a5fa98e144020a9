"""LLVM's text around a program: for one row, and for rows in turn.

``%ctx`` are two numbers: instructions executed, and why the run was stopped: 0, 1 and a place in ``Source.stops``, or
-1 less the offset of a field that is outside of its bounds.
"""

from __future__ import annotations

from typing import Final

from uxk.bpf.batch_ops import Text
from uxk.bpf.insn import M64, s64
from uxk.bpf.proto import Spec
from uxk.bpf.values import S64_MAX, S64_MIN


def rows_text(spec: Spec) -> str:
    """``row(row)`` returns r0; ``many(rows, count, stride, verdicts, faults)`` fills the last two.

    Faults that are 0 are not written; ``many`` returns how many others there are.
    """
    return "\n".join([_one(spec), _ROW, _MANY])


def _one(spec: Spec) -> str:
    """``one``: the bounds of the fields of a row, then the program."""
    text, memory = Text(), spec.memory
    outside: list[tuple[int, str]] = []
    for offset, bounds in sorted(spec.fields.items()):
        place = text.value(f"getelementptr i8, ptr %row, i64 {offset}")
        field = text.value(f"load i64, ptr {place}, align 1")
        tests = [("slt", bounds.smin, S64_MIN), ("sgt", bounds.smax, S64_MAX), ("ult", bounds.umin, 0),
                 ("ugt", bounds.umax, M64)]  # fmt: skip
        outside += [
            (offset, text.value(f"icmp {test} i64 {field}, {s64(bound)}")) for test, bound, end in tests
            if bound != end
        ]  # fmt: skip
    bad, code = "0", "0"
    for offset, test in reversed(outside):
        bad = text.value(f"or i1 {bad}, {test}")
        code = text.value(f"select i1 {test}, i64 {-1 - offset}, i64 {code}")
    first = "ptrtoint ptr %row to i64" if memory else "add i64 0, 0"
    size_bytes = memory.size_bytes if memory else 0
    return "\n".join([
        "define internal i64 @one(ptr %row, ptr %ctx) {", *text.lines,
        "store i64 0, ptr %ctx", "%at = getelementptr i64, ptr %ctx, i64 1", f"store i64 {code}, ptr %at",
        f"br i1 {bad}, label %out, label %run", "out: ret i64 0",
        "run:", f"%first = {first}",
        f"%r = call i64 @f0(ptr %ctx, i64 %first, i64 {size_bytes}, i64 0, i64 0, i64 0)", "ret i64 %r", "}",
    ])  # fmt: skip


_ROW: Final = """
define i64 @row(ptr %row) {
%ctx = alloca [2 x i64], align 8
%r = call i64 @one(ptr %row, ptr %ctx)
ret i64 %r
}"""
_MANY: Final = """
define i64 @many(ptr %rows, i64 %count, i64 %stride, ptr noalias %verdicts, ptr noalias %faults) {
entry:
%ctx = alloca [2 x i64], align 8
%at = getelementptr i64, ptr %ctx, i64 1
br label %head
head:
%n = phi i64 [0, %entry], [%next, %ran]
%bad = phi i64 [0, %entry], [%worse, %ran]
%more = icmp ult i64 %n, %count
br i1 %more, label %body, label %done
body:
%off = mul i64 %n, %stride
%row = getelementptr i8, ptr %rows, i64 %off
%r = call i64 @one(ptr %row, ptr %ctx)
%verdict = getelementptr i64, ptr %verdicts, i64 %n
store i64 %r, ptr %verdict
%code = load i64, ptr %at
%stopped = icmp ne i64 %code, 0
br i1 %stopped, label %tell, label %ran
tell:
%fault = getelementptr i64, ptr %faults, i64 %n
store i64 %code, ptr %fault
br label %ran
ran:
%one = zext i1 %stopped to i64
%worse = add i64 %bad, %one
%next = add i64 %n, 1
br label %head
done:
ret i64 %bad
}"""
