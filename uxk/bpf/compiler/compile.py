"""Compiling: model, decision form, bytecode, proof, and the report that goes with the program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final, NamedTuple

import msgspec

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
    Linear,
    Score,
    nodes,
    trees_of,
    verdicts,
)  # fmt: skip
from uxk.bpf.compiler.models import Options, read_model
from uxk.bpf.compiler.report import INPUTS_DEFAULT, Agreement, agreement, draw
from uxk.bpf.compiler.schema import Schema, schema_from
from uxk.bpf.insn import Insn
from uxk.bpf.program import Program
from uxk.bpf.values import S64_MAX, S64_MIN, Scalar, Value, const
from uxk.bpf.verifier import Proof, verify

FORMAT: Final = 1
DEFAULTS: Final = Options()


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

    def program(self, *, trusted: bool = False, name: str = "") -> Program:
        """The program, ready to run on the features and a 0; ``trusted`` as in :meth:`Schema.spec`."""
        spec = self.schema.spec(self.model.verdict, trusted=trusted)
        return Program(self.code, spec, name=name or self.model.kind)

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
        found = agreement(
            model, lambda row: program.decide(*row, 0), self.schema, self.model.labels, self.model.values,
            self.model.scale, rows, source,
        )  # fmt: skip
        return self._replace(agreement=found)

    # --- files ---

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Writes the code to ``path`` and what stands beside it to the same name in ``.json``; returns both names."""
        code, beside = Path(path), Path(path).with_suffix(".json")
        if code == beside:
            raise CompileError(f"{code}: the program cannot be called .json, as what stands beside it is")
        told = {
            "format": FORMAT, "sha256": self.digest, "schema": self.schema.plain(), "spare_slot": self.schema.spare,
            **msgspec.to_builtins(self.model), "agreement": self.agreement and {
                **self.agreement._asdict(), "ppm": self.agreement.ppm,
            },
        }  # fmt: skip
        code.write_bytes(self.code)
        beside.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")
        return code, beside


class _File(Model, frozen=True, kw_only=True):
    """What is in the file beside a program."""

    format: int
    sha256: str
    schema: list[dict[str, Any]]
    agreement: dict[str, Any] | None = None


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
    fields = {name: getattr(told, name) for name in Model.__struct_fields__}
    found = told.agreement and {name: told.agreement[name] for name in Agreement._fields if name in told.agreement}
    schema = schema_from(msgspec.json.encode(told.schema), str(beside))
    made = Compiled(code, schema, Model(**fields), None, Agreement(**found) if found else None)
    verify(code, schema.spec(made.model.verdict))
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
    proof = verify(code, schema.spec(verdict))
    check_exact(proof)
    told = Model(
        kind or type(form).__name__, labels, values, verdict, scale, len(proof.insns), len(trees_of(form)), leaves,
        _weights(form), depth, proof.looked_at, perf_counter_ns() - begun,
    )  # fmt: skip
    return Compiled(code, schema, told, form)


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


def _exact(insn: Insn, before: Sequence[Value]) -> bool:
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
    most = FOREST_DEPTH_MAX if isinstance(form, Forest) else TREE_DEPTH_MAX
    if depth > most:
        raise CompileError(f"a tree of {depth} levels; at most {most} here: set its max_depth")
    return depth, leaves


def _weights(form: Form) -> int:
    match form:
        case Score(linear, _):
            return len(linear.terms)
        case Dense(layers, _):
            return sum(len(neuron.terms) for layer in layers for neuron in layer)
        case _:
            found = (node.value for root in trees_of(form) for node, _ in nodes(root) if isinstance(node, Leaf))
            return sum(len(value.terms) for value in found if isinstance(value, Linear))
