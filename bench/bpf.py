"""``python -m bench.bpf``: decisions a second by models and by the programs made of them, and what making them costs.

Every contender is asked about inputs drawn anew from the features' ranges, one after the other, or in batches.  The
running kernel takes part where bpf(2) answers: by one call a decision, and with one input that its test run repeats,
which trains the branch predictor.  The second half sets programs of growing size against the time to make, prove,
translate and compile them, in instructions a second: a rate that does not fall with the size is linear.  ``--docs``
writes the tables of docs/benchmarks.md anew.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from time import perf_counter_ns
from types import ModuleType
from typing import Any, Final

import numpy as np

from bench.bpf_table import DOCUMENT, tables
from bench.methods_table import as_markdown, replaced
from bench.report import add_options, begun, chosen, parsed, plain, save, show
from bench.runner import Case, Contender, Measure, Result, Target, run_case
from uxk.bpf.batch import Batch
from uxk.bpf.batch_jit import missing
from uxk.bpf.compiler.codegen import generate
from uxk.bpf.compiler.compile import Compiled, compile_form, compile_model
from uxk.bpf.compiler.forms import Forest, Form, Leaf, Node, Split, Tree
from uxk.bpf.compiler.nets import Net
from uxk.bpf.compiler.report import draw
from uxk.bpf.compiler.schema import Feature, Schema
from uxk.bpf.translate import Translation
from uxk.bpf.verifier import verify

STEM: Final = "bpf-"
SAMPLE_NS = 300_000_000
SAMPLE_QUICK_NS = 30_000_000
INPUTS: Final = 4_096
BATCH_ROWS: Final = 65_536
"""So many that a processor does not learn the way through a tree by heart."""
ROWS: Final = 20_000
ROWS_FOREST: Final = 3_000
LEAVES: Final = (10, 100, 1_000, 4_000)
FLOORS: Final = {"tree": 10.0, "forest": 20.0, "logistic": 2.0}
"""How many times as fast as river the translation must be."""
SCHEMA: Final = Schema([
    Feature("size", 1, 2_048, "blocks"), Feature("age", 0, 20_000_000, "us"), Feature("valid", 0, 1_000_000, "ppm"),
    *(Feature(f"f{n}", -1_000, 1_000) for n in range(5)),
])  # fmt: skip
JUDGE: Final = Path(__file__).resolve().parent.parent / "tests" / "bpf" / "linux_judge.py"

# --- models ---


def models(rows: int, rows_of_forest: int) -> dict[str, Any]:
    """Trained on rows with a twentieth of wrong labels; the net's weights are of chance."""
    from river import forest, linear_model, optim, preprocessing, tree

    rng = np.random.default_rng(1)
    layers = [(rng.normal(size=(outputs, inputs)), rng.normal(size=outputs)) for inputs, outputs in ((8, 16), (16, 2))]
    quick: dict[str, Any] = {"leaf_prediction": "mc", "grace_period": 40, "delta": 0.05}
    made: dict[str, tuple[Any, int]] = {
        "tree": (tree.HoeffdingTreeClassifier(**quick), rows),
        "forest": (forest.ARFClassifier(n_models=10, seed=1, **quick), rows_of_forest),
        "logistic": (preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.1)), rows),
    }
    for model, count in made.values():
        chance = Random(1)
        for _ in range(count):
            x = {f.name: chance.randint(f.low, f.high) for f in SCHEMA.features}
            wrong = chance.random() < 0.05
            model.learn_one(x, ((x["age"] > 5_000_000) + (x["valid"] < 300_000) + (x["f0"] > 0) >= 2) ^ wrong)
    means = [(f.low + f.high) / 2 for f in SCHEMA.features]
    wide = [(f.high - f.low) / 4 for f in SCHEMA.features]
    return {**{name: model for name, (model, _) in made.items()}, "net": Net(layers, (False, True), means, wide)}


# --- decisions ---


def asked(decide: Callable[..., object], inputs: Sequence[Any], *, spread: bool = False) -> Measure:
    """Asks about one input after the other, from the beginning again at their end."""

    def measure(count: int) -> tuple[int, int]:
        turns, rest = divmod(count, len(inputs))
        begin_ns = perf_counter_ns()
        for part in (*[inputs] * turns, inputs[:rest]):
            if spread:
                for x in part:
                    decide(*x)
            else:
                for x in part:
                    decide(x)
        return count, perf_counter_ns() - begin_ns

    return measure


def by_turns(work: Callable[[], object], each: int) -> Measure:
    """Does it again and again; each time counts as so many."""

    def measure(count: int) -> tuple[int, int]:
        turns = -(-count // each)
        begin_ns = perf_counter_ns()
        for _ in range(turns):
            work()
        return turns * each, perf_counter_ns() - begin_ns

    return measure


def in_batches(compiled: Compiled, table: Any) -> list[Contender]:
    """The program as machine code, over a whole array and called for each row; nothing without llvmlite."""
    if missing():
        return []
    batch, quick = Batch(compiled.program(), native=True), Batch(compiled.program(), native=True, quick=True)
    rows = np.ascontiguousarray(np.pad(table, ((0, 0), (0, 1))))
    assert (batch.many(rows) == quick.many(rows)).all()
    one = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(batch.address)
    places = [rows.ctypes.data + number * rows.strides[0] for number in range(INPUTS)]
    return [
        Contender("uxk machine code, calls", asked(one, places), "through ctypes, the features in an array already"),
        Contender("uxk batch", by_turns(lambda: batch.many(rows), len(rows)), "machine code, over an array"),
        Contender("uxk batch, quick", by_turns(lambda: quick.many(rows), len(rows)), "made with less effort"),
    ]


def in_numba(compiled: Compiled, table: Any) -> list[Contender]:
    """The translation, compiled by numba, over a whole array; nothing where numba is missing."""
    try:
        njit = importlib.import_module("numba").njit
    except ModuleNotFoundError:
        return []
    program = compiled.program()
    one = njit(program.translation.function)

    def all_of(table: Any, verdicts: Any) -> None:
        for n in range(len(table)):
            verdicts[n] = one(table[n])

    rows = np.ascontiguousarray(np.pad(table, ((0, 0), (0, 1))))
    batch, verdicts = njit(all_of), np.zeros(len(rows), np.int64)
    begin_ns = perf_counter_ns()
    batch(rows, verdicts)
    made_s = (perf_counter_ns() - begin_ns) / 1e9
    assert verdicts[:INPUTS].tolist() == [program.decide(*row) for row in rows[:INPUTS].tolist()]
    work = by_turns(lambda: batch(rows, verdicts), len(rows))
    return [Contender("numba, batch", work, f"the translation compiled by numba, in {made_s:.1f} s")]


def in_numpy(net: Net, table: Any) -> Contender:
    """The net itself, in floating point, over a whole array."""
    rows = table.astype(np.float64)

    def work() -> object:
        value = (rows - np.asarray(net.means)) / np.asarray(net.deviations)
        for number, (weights, biases) in enumerate(net.layers):
            value = (np.maximum(value, 0) if number else value) @ weights.T + biases
        return np.argmax(value, axis=1)

    return Contender("numpy, batch", by_turns(work, len(rows)), "the net in floating point, over an array")


def linux() -> ModuleType | None:
    """The tests' way to bpf(2); None where it does not answer."""
    if not JUDGE.exists():
        return None
    if str(JUDGE.parent) not in sys.path:
        sys.path.append(str(JUDGE.parent))  # it has files of its own beside it
    judge = importlib.import_module(JUDGE.stem)
    if importlib.import_module("linux_answers").why_not():
        return None
    return judge


def in_linux(judge: ModuleType, compiled: Compiled, memories: Sequence[bytes]) -> list[Contender]:
    """The program in the running kernel: a call each, and one input again and again."""
    size = len(memories[0])
    memory, result = judge.array_map(size), judge.array_map(8)
    program = judge.load(judge.wrapped(compiled.code, memory, size, result))

    def call(content: bytes) -> None:
        judge.put(memory, content)
        judge.test_run(program)
        judge.take(result, 8)

    def repeat(count: int) -> tuple[int, int]:
        return count, max(1, judge.timed_run(program, count)) * count

    return [
        Contender("linux, calls", asked(call, memories), "three calls of bpf(2) a decision, from Python"),
        Contender("linux, repeated", repeat, "one input, repeated: the JIT at best, in whole ns"),
    ]


def decisions(name: str, model: Any, judge: ModuleType | None) -> Case:
    """One model by all ways."""
    compiled = compile_model(model, SCHEMA)
    assert compiled.form is not None
    table = draw(SCHEMA, compiled.form, INPUTS, seed=1)
    rows = [tuple(row) for row in table.tolist()]
    fields = [(*row, 0) for row in rows]
    memories = [SCHEMA.pack(row) for row in rows]
    program, trusted = compiled.program(), compiled.program(trusted=True)
    contenders = [
        Contender("uxk translated", asked(program.decide, fields, spread=True)),
        Contender("uxk trusted", asked(trusted.decide, fields, spread=True), "without bringing features into ranges"),
        Contender("uxk interpreter", asked(program.interpret, memories), "the reference"),
    ]
    many = draw(SCHEMA, compiled.form, BATCH_ROWS, seed=2)
    contenders += in_batches(compiled, many)
    if name in ("tree", "logistic"):  # the others take numba minutes
        contenders += in_numba(compiled, many)
    if isinstance(model, Net):
        contenders.append(in_numpy(model, many))
    asks = [dict(zip(SCHEMA.names, row, strict=True)) for row in rows]
    what = "numpy net" if isinstance(model, Net) else "river predict_one"
    contenders.append(Contender(what, asked(model.predict_one, asks)))
    if judge is not None:
        contenders += in_linux(judge, compiled, memories)
    size, floor = f"{compiled.model.instructions} instructions", FLOORS.get(name)
    targets = [Target("uxk translated", what, floor)] if floor else []
    return Case(f"decide/{name} ({size})", "decisions/s", contenders, targets)


# --- making programs ---


def grown(leaves: int, rng: Random, votes: bool = False) -> Node:
    """A tree of chance, neither flat nor a chain."""
    if leaves == 1:
        return Leaf(votes=(rng.randrange(1 << 30), rng.randrange(1 << 30))) if votes else Leaf(rng.randrange(4))
    left, slot = rng.randint(max(1, leaves // 4), max(1, leaves * 3 // 4)), rng.randrange(len(SCHEMA))
    at = rng.randint(SCHEMA.features[slot].low, SCHEMA.features[slot].high)
    left = min(left, leaves - 1)
    return Split(slot, at, grown(left, rng, votes), grown(leaves - left, rng, votes))


def making(name: str, form: Form, judge: ModuleType | None) -> Case:
    """One program: to bytes, proof, Python, and into the kernel."""
    compiled = compile_form(form, SCHEMA)
    spec, size = SCHEMA.spec(compiled.model.verdict), compiled.model.instructions
    proof = verify(compiled.code, spec)
    works: list[tuple[str, Callable[[], object], str]] = [
        ("uxk generate", lambda: generate(form, SCHEMA.spare), "decision form to bytes"),
        ("uxk verify", lambda: verify(compiled.code, spec), ""),
        ("uxk translate", lambda: Translation(proof), "to Python, compiled"),
    ]
    if not missing():
        program = compiled.program()
        works += [
            ("uxk machine code, quick", lambda: Batch(program, native=True, quick=True), "proof to machine code"),
            ("uxk machine code", lambda: Batch(program, native=True), "the same, with more effort"),
        ]
    if judge is not None:
        memory, result = judge.array_map(8 * (len(SCHEMA) + 1)), judge.array_map(8)
        code = judge.wrapped(compiled.code, memory, 8 * (len(SCHEMA) + 1), result)
        works.append(("linux load", lambda: os.close(judge.load(code)), "verifier and JIT"))
    contenders = [Contender(who, by_turns(work, size), note) for who, work, note in works]
    return Case(f"make/{name} ({size} instructions)", "instructions/s", contenders)


def all_cases(
    rows: int = ROWS, rows_of_forest: int = ROWS_FOREST, leaves: Sequence[int] = LEAVES, *, no_linux: bool = False
) -> list[Case]:
    """Every question."""
    judge, rng = None if no_linux else linux(), Random(1)
    cases = [decisions(name, model, judge) for name, model in models(rows, rows_of_forest).items()]
    cases += [making(f"{count} leaves", Tree(grown(count, rng)), judge) for count in leaves]
    forest = Forest(tuple(grown(leaves[1], rng, votes=True) for _ in range(10)), (0, 1))
    return [*cases, making(f"10 trees of {leaves[1]} leaves", forest, judge)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what was asked for.  0; 2 if no case has such a name."""
    parser = argparse.ArgumentParser(prog="python -m bench.bpf", description="Measures models and their programs.")
    add_options(parser, STEM, "samples of 30 ms instead of 300")
    parser.add_argument("--no-linux", action="store_true", help="without the running kernel, even if bpf(2) answers")
    parser.add_argument("--docs", action="store_true", help="write the tables of docs/benchmarks.md anew")
    args = parsed(parser, argv)
    if args.docs and (args.only or args.quick):
        parser.error("--docs: needs all cases at full length")
    cases = chosen(all_cases(no_linux=args.no_linux), args.only, lambda case: case.name)
    if not cases:
        return 2
    sample_ns = SAMPLE_QUICK_NS if args.quick else SAMPLE_NS
    versions = {"python": platform.python_version(), "river": importlib.metadata.version("river")}
    print(f"{os.cpu_count()} CPUs, {platform.release()}, {', '.join(f'{n} {v}' for n, v in versions.items())}\n")
    report = begun(versions=versions, rounds=args.rounds, sample_ns=sample_ns)
    results: list[Result] = []
    for case in cases:
        results.append(run_case(case, rounds=args.rounds, sample_ns=sample_ns))
        print(show(results[-1]), flush=True)
        report["cases"].append(plain(results[-1]))
    save(report, args.json, STEM)
    if args.docs:
        text = DOCUMENT.read_text("utf-8")
        for name, cells in tables(results).items():
            text = replaced(text, name, as_markdown(cells))
        DOCUMENT.write_text(text, "utf-8")
        print(f"written: {DOCUMENT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
