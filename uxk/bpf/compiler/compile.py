"""Compiling: model, decision form, bytecode, proof, and the report that goes with the program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np

from uxk.bpf import insn as i
from uxk.bpf.compiler.codegen import generate
from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.forms import (
    FOREST_DEPTH_MAX,
    TREE_DEPTH_MAX,
    Dense,
    Forest,
    Form,
    Leaf,
    Score,
    Tabled,
    check_sum,
    nodes,
    trees_of,
    verdicts,
)  # fmt: skip
from uxk.bpf.compiler.models import Options, read_model
from uxk.bpf.compiler.report import INPUTS_DEFAULT, Agreement, agreement, draw
from uxk.bpf.compiler.schema import Schema, schema_from
from uxk.bpf.compiler.tables import WEIGHTS_MAP, areas, evaluate_rows, packed
from uxk.bpf.insn import Insn
from uxk.bpf.maps import ArrayMap, Map
from uxk.bpf.program import Program
from uxk.bpf.proto import MapShape
from uxk.bpf.values import S64_MAX, S64_MIN, Pointer, Scalar, Value, const
from uxk.bpf.verifier import Proof, verify

FORMAT: Final = 1
DEFAULTS: Final = Options()
ROWS_RUN: Final = 32
"""Of a net with weights as data: rows on which the program is run, beside its form."""
_WEIGHTS: Final = ".weights"
Decide: TypeAlias = Callable[[Sequence[int]], int]


class Model(msgspec.Struct, frozen=True):
    """What stands beside a program: what it was made from, and what was found out about it."""

    kind: str
    """The class of the model."""
    labels: tuple[Any, ...]
    """What the model calls its answers; empty for regressions."""
    values: tuple[int, ...]
    """The verdicts for them."""
    verdict: tuple[int, int]
    """Lowest and highest verdict."""
    scale: int
    """Of regressions: the verdict for 1."""
    instructions: int
    trees: int
    leaves: int
    weights: int
    depth: int
    followed: int
    """Instructions that the verifier looked at."""
    compile_ns: int
    """Host time for form, code and proof."""
    notes: tuple[str, ...] = ()


class Compiled(NamedTuple):
    """A verified program with its schema.  ``form``: its exact meaning; None if it was read from a file."""

    code: bytes
    schema: Schema
    model: Model
    form: Form | None = None
    agreement: Agreement | None = None
    weights: bytes = b""
    """Of a net whose weights are data: one area of the map."""

    def program(self, *, trusted: bool = False, name: str = "") -> Program:
        """The program, ready to run on the features and a 0; ``trusted`` as in :meth:`Schema.spec`."""
        spec = self.schema.spec(self.model.verdict, trusted=trusted)
        return Program(self.code, spec, maps=self.maps(), name=name or self.model.kind)

    def maps(self) -> dict[int, Map]:
        """The map with the weights, read-only for the program, if it has one; see ``tables.WEIGHTS_MAP``."""
        if not self.weights:
            return {}
        data = areas(self.weights)
        made = ArrayMap(len(data), 1, "weights")
        made[0], made.read_only = data, True
        return {WEIGHTS_MAP: made}

    def label(self, verdict: int) -> Any:
        """What the model calls a verdict; of a regression, its answer."""
        if not self.model.labels:
            return verdict / self.model.scale
        return self.model.labels[self.model.values.index(verdict)]

    @property
    def digest(self) -> str:
        """SHA-256 of the code."""
        return sha256(self.code).hexdigest()

    def compared(
        self, model: Any, *, inputs: int = INPUTS_DEFAULT, seed: int = 0, rows: Iterable[Sequence[int]] | None = None
    ) -> Compiled:
        """With the agreement with a model on rows, in the schema's order, or on numbers drawn; see :func:`draw`."""
        program, source = self.program(), "drawn" if rows is None else "given"
        if rows is None:
            if self.form is None:
                raise CompileError("a program from a file has no decision form to draw inputs for; give rows")
            rows = draw(self.schema, self.form, inputs, seed)
        decide: Decide = lambda row: program.decide(*row, 0)  # noqa: E731
        if isinstance(self.form, Tabled):
            rows = [[int(x) for x in row] for row in rows]
            decide = _decided(self.form, rows, decide)
        found = agreement(
            model, decide, self.schema, self.model.labels, self.model.values, self.model.scale, rows, source
        )
        return self._replace(agreement=found)

    # --- files ---

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Writes the code to ``path`` and what stands beside it to the same name in ``.json``; returns both names."""
        code, beside = Path(path), Path(path).with_suffix(".json")
        if code.suffix in (".json", _WEIGHTS):
            raise CompileError(f"{code}: the program cannot be called {code.suffix}, as what stands beside it is")
        told = {
            "format": FORMAT, "sha256": self.digest, "schema": self.schema.plain(), "spare_slot": self.schema.spare,
            "weights_sha256": sha256(self.weights).hexdigest() if self.weights else "",
            **msgspec.to_builtins(self.model), "agreement": self.agreement and {
                **self.agreement._asdict(), "ppm": self.agreement.ppm,
            },
        }  # fmt: skip
        code.write_bytes(self.code)
        if self.weights:
            code.with_suffix(_WEIGHTS).write_bytes(self.weights)
        beside.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")
        return code, beside


class _File(Model, frozen=True, kw_only=True):
    """What is in the file beside a program."""

    format: int
    sha256: str
    schema: list[dict[str, Any]]
    agreement: dict[str, Any] | None = None
    weights_sha256: str = ""


def load(path: str | Path) -> Compiled:
    """A program that was saved, verified anew.  ``CompileError`` if the two files do not belong together."""
    code, beside = Path(path).read_bytes(), Path(path).with_suffix(".json")
    try:
        told = msgspec.json.decode(beside.read_bytes(), type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise CompileError(f"{beside}: {exc}; expected what uxk compile writes") from None
    if told.format != FORMAT:
        raise CompileError(f"{beside}: format {told.format}, expected {FORMAT}")
    if told.sha256 != sha256(code).hexdigest():
        raise CompileError(f"{path}: is not the program that {beside} is about")
    weights = b""
    if told.weights_sha256:
        data = Path(path).with_suffix(_WEIGHTS)
        weights = data.read_bytes()
        if told.weights_sha256 != sha256(weights).hexdigest():
            raise CompileError(f"{data}: are not the weights that {beside} is about")
    fields = {name: getattr(told, name) for name in Model.__struct_fields__}
    found = told.agreement and {name: told.agreement[name] for name in Agreement._fields if name in told.agreement}
    schema = schema_from(msgspec.json.encode(told.schema), str(beside))
    made = Compiled(code, schema, Model(**fields), None, Agreement(**found) if found else None, weights)
    made.program()
    return made


def compile_model(model: Any, schema: Schema, options: Options = DEFAULTS) -> Compiled:
    """A model of river's, or a :class:`~uxk.bpf.compiler.nets.Net`, as a verified program.

    Raises ``CompileError`` for what cannot be read, is too large, or may overflow; ``VerifierError`` is a defect here.
    """
    begun = perf_counter_ns()
    read = read_model(model, schema, options)
    made = compile_form(read.form, schema, kind=read.kind, labels=read.labels, values=read.values, scale=options.scale)
    noted = msgspec.structs.replace(made.model, notes=read.notes, compile_ns=perf_counter_ns() - begun)
    return made._replace(model=noted)


def compile_form(
    form: Form, schema: Schema, *, kind: str = "", labels: tuple[Any, ...] = (), values: tuple[int, ...] = (),
    scale: int = 1,
) -> Compiled:  # fmt: skip
    """A decision form as a verified program, in which nothing can overflow whatever the slots hold."""
    begun = perf_counter_ns()
    depth, leaves = _checked(form)
    code, verdict = generate(form, schema.spare), verdicts(form)
    weights = packed(form) if isinstance(form, Tabled) else b""
    shape = MapShape("array", 4, len(areas(weights)), direct=True, writable=False)
    proof = verify(code, schema.spec(verdict)._replace(maps={WEIGHTS_MAP: shape} if weights else {}))
    check_exact(proof)
    told = Model(
        kind or type(form).__name__, labels, values, verdict, scale, len(proof.insns), len(trees_of(form)), leaves,
        _weights(form), depth, proof.looked_at, perf_counter_ns() - begun,
    )  # fmt: skip
    return Compiled(code, schema, told, form, weights=weights)


def check_exact(proof: Proof) -> None:
    """Raises ``CompileError`` if an addition, subtraction, product or left shift may leave 64 bits.

    The bounds are the verifier's, so this does not rest on those by which the compiler chose the weights.
    """
    for pc, before in proof.before.items():
        insn = proof.insns[pc]
        if insn.cls != i.ALU64 or insn.op not in (i.ADD, i.SUB, i.MUL, i.LSH):
            continue
        if not _exact(insn, before):
            raise CompileError(f"insn {pc}: {before[insn.dst]} may overflow")


def _decided(form: Tabled, rows: Sequence[Sequence[int]], decide: Decide) -> Decide:
    """Gives the form's verdicts in the order of the rows, all worked out at once; the program must give the first."""
    verdicts_ = evaluate_rows(form, np.array(rows, np.int64))
    for row, verdict in zip(rows[:ROWS_RUN], verdicts_, strict=False):
        if decide(row) != verdict:
            raise CompileError(f"the program says {decide(row)} on {list(row)}, its form {verdict}: a defect here")
    following = iter(verdicts_)
    return lambda _: next(following)


def _exact(insn: Insn, before: Sequence[Value]) -> bool:
    if isinstance(before[insn.dst], Pointer):
        return True  # the verifier itself sees to pointers
    a, b = before[insn.dst], before[insn.src] if insn.by_register else const(insn.imm)
    if not (isinstance(a, Scalar) and isinstance(b, Scalar)):
        return False
    if insn.op == i.ADD:
        ends = [a.smin + b.smin, a.smax + b.smax]
    elif insn.op == i.SUB:
        ends = [a.smin - b.smax, a.smax - b.smin]
    elif insn.op == i.MUL:
        ends = [x * y for x in (a.smin, a.smax) for y in (b.smin, b.smax)]
    else:
        ends = [x << b.smin for x in (a.smin, a.smax)] if b.known else [S64_MAX + 1]
    return min(ends) >= S64_MIN and max(ends) <= S64_MAX


def _checked(form: Form) -> tuple[int, int]:
    """Depth and leaves."""
    depth = leaves = 0
    for root in trees_of(form):
        for node, level in nodes(root):
            depth = max(depth, level)
            leaves += isinstance(node, Leaf)
    if isinstance(form, Forest) and not form.values:
        check_sum(form)
    most = FOREST_DEPTH_MAX if isinstance(form, Forest) else TREE_DEPTH_MAX
    if depth > most:
        raise CompileError(f"a tree of {depth} levels; at most {most} here: set its max_depth")
    return depth, leaves


def _weights(form: Form) -> int:
    match form:
        case Score(linear, _):
            return len(linear.terms)
        case Tabled(layers=tables):
            return sum(len(row) for layer in tables for row in layer)
        case Dense(layers, _):
            return sum(len(neuron.terms) for layer in layers for neuron in layer)
        case _:
            found = (node.value for root in trees_of(form) for node, _ in nodes(root) if isinstance(node, Leaf))
            return sum(len(value.terms) for value in found if not isinstance(value, int))
