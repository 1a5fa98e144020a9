"""``uxk compile``: what an agent has learnt becomes a verified eBPF program without floating point.

Exit codes: 0 good, 1 it failed or agrees too little, 2 wrong usage.  Models are unpickled here, in the user's own
process, and nowhere else: what is written are integers.  Pickles that name more than models consist of are refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from uxk.cli.common import FAILED, GOOD, Subparsers, UsageExit, add_verb, clean, note, param_texts, print_json
from uxk.errors import UsageError

if TYPE_CHECKING:
    from uxk.bpf.compiler.compile import Compiled
    from uxk.bpf.compiler.schema import Schema

_EPILOG: Final = """\
MODEL is a checkpoint that `uxk train` wrote, or a pickle (.pickle, .pkl) of a model; or a module that learns, with
--from LOG, which is trained first. Of a file only what models consist of is read; one that names anything else is code,
and needs --trust. If there are several models in it, --at says which. SCHEMA is a list of {"name": .., "low": ..,
"high": .., "unit": ..}, in the order of the slots. OUT gets the bytes, the same name in .json the schema and the
report, in .weights what a wide net's program reads from its map.
"""
_PICKLES: Final = (".pickle", ".pkl")
_FILE_MAX_BYTES: Final = 256 << 20
AGREE_DEFAULT: Final = 99.8
"""Percent."""


def register(subparsers: Subparsers) -> None:
    """Adds the verb."""
    parser = add_verb(
        subparsers, "compile", compile_, help="make an eBPF program of a model", json=True, epilog=_EPILOG
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint, a pickle, or with --from a module")
    parser.add_argument("-s", "--schema", required=True, metavar="SCHEMA", help="JSON file with the features")
    parser.add_argument("-o", "--out", metavar="OUT", help="file to write (default: MODEL's name with .bpf, here)")
    parser.add_argument("--at", metavar="PATH", help="where in the state the model is, such as chooser.model")
    parser.add_argument("--from", dest="log", metavar="LOG", help="train the module from this dataset log first")
    parser.add_argument("-p", "--param", action="append", default=[], metavar="NAME=VALUE", help="a module's parameter")
    parser.add_argument(
        "--scale", type=int, default=1, metavar="N", help="of regressions: the verdict for 1 (default: 1)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, metavar="P", help="of logistic models: yes above it (default: 0.5)"
    )
    parser.add_argument("--bits", type=int, default=30, metavar="N", help="of each weight (default: 30, the most)")
    parser.add_argument("--tables", action="store_true", help="of nets: weights as data, even where they fit as code")
    parser.add_argument(
        "--majority-leaves", action="store_true", help="leaves with naive Bayes become majority leaves, and agree less"
    )
    parser.add_argument("--trust", action="store_true", help="read a file that may run any code")
    parser.add_argument("--count", type=int, default=10_000, metavar="N", help="inputs to compare on (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the inputs, and of training (default: 0)")
    parser.add_argument("--inputs", metavar="CSV", help="compare on these rows instead; a column for each feature")
    parser.add_argument(
        "--agree",
        type=float,
        metavar="PERCENT",
        help="write nothing unless it agrees so often (default: 99.8; 0 with --majority-leaves)",
    )


def compile_(args: argparse.Namespace) -> int:
    """Compiles, compares, writes, tells."""
    from uxk.bpf.compiler.compile import compile_model
    from uxk.bpf.compiler.models import Options
    from uxk.bpf.compiler.schema import read_schema

    if args.count < 1:
        raise UsageExit(f"--count {args.count}: expected at least 1")
    wanted = args.agree if args.agree is not None else 0.0 if args.majority_leaves else AGREE_DEFAULT
    if not 0 <= wanted <= 100:
        raise UsageExit(f"--agree {wanted}: expected 0 to 100")
    schema = read_schema(args.schema)
    rows = _rows(Path(args.inputs), schema) if args.inputs else None
    model = _model(_state(args), args.at, args.model)
    out = Path(args.out or f"{Path(args.model).stem}.bpf")
    _spare(out, args)
    options = Options(args.scale, args.threshold, args.bits, args.tables, args.majority_leaves)
    made = compile_model(model, schema, options)
    made = made.compared(model, inputs=args.count, seed=args.seed, rows=rows)
    assert made.agreement is not None
    enough = made.agreement.ppm >= wanted * 10_000
    if enough:
        made.save(out)
    _tell(made, str(out) if enough else "", as_json=args.json)
    if not enough:
        note(f"agrees on less than {wanted:g} %: nothing is written; --agree says how much is enough")
    return GOOD if enough else FAILED


def _spare(out: Path, args: argparse.Namespace) -> None:
    """What is written must not take the place of what is read.  Raises UsageExit."""
    if not out.name:
        raise UsageExit(f"-o {out}: expected the name of a file")
    written = {each.resolve() for each in (out, out.with_suffix(".json"), out.with_suffix(".weights"))}
    for name, given in (("model", args.model), ("--schema", args.schema), ("--inputs", args.inputs)):
        if given and Path(given).resolve() in written:
            raise UsageExit(f"-o {out}: {given} would be written over, which is the {name}: expected another name")


def _tell(made: Compiled, out: str, *, as_json: bool) -> None:
    told, found = made.model, made.agreement
    assert found is not None
    if as_json:
        import msgspec

        print_json({**msgspec.to_builtins(told), **found._asdict(), "agreement_ppm": found.ppm, "out": out})
        return
    parts = [f"{told.instructions} instructions"]
    if told.trees:
        parts.append(f"{told.trees} tree{'s' * (told.trees > 1)}, {told.leaves} leaves, {told.depth} levels")
    if told.weights:
        parts.append(f"{told.weights} weights")
    print(clean(f"{told.kind}: {', '.join(parts)}; verdict {told.verdict[0]} to {told.verdict[1]}"))
    for line in told.notes:
        print(clean(f"  {line}"))
    off = "" if told.labels else f", within 1; off by {found.mean_error_ppm / 1e6:.3f} on average"
    share = f"{found.ppm // 1000 / 10:.1f}" if found.agreed == found.inputs else f"{found.ppm / 1e4:.4f}"
    print(f"agrees with the model on {share} % of {found.inputs} inputs {found.source}{off}")
    if out:
        beside = Path(out).with_suffix(".json")
        data = f"; its weights: {Path(out).with_suffix('.weights')}, {len(made.weights)} bytes" * bool(made.weights)
        print(clean(f"{out}: {len(made.code)} bytes, sha256 {made.digest[:16]}; beside it {beside}{data}"))


# --- what is compiled ---


def _state(args: argparse.Namespace) -> Any:
    """What the file or the trained agent holds."""
    path = Path(args.model)
    if args.log:
        return _unpickled(_checkpoint(_trained(args), args.model), args.model, trusted=True)
    if args.param:
        raise UsageExit("--param is for training, with --from")
    if not path.is_file():
        raise UsageExit(
            f"{args.model}: no such file; give a checkpoint of `uxk train`, or --from LOG to train that module"
        )
    with path.open("rb") as file:
        data = file.read(_FILE_MAX_BYTES + 1)
    if len(data) > _FILE_MAX_BYTES:
        raise UsageError(f"{path}: more than {_FILE_MAX_BYTES} bytes")
    if path.suffix in _PICKLES:
        return _unpickled(data, str(path), trusted=args.trust)
    from uxk.core.trained import from_file

    try:
        found = from_file(data)
    except UsageError as exc:
        raise UsageError(f"{path}: {exc}; a pickle is called {' or '.join(_PICKLES)}") from None
    return _unpickled(_checkpoint(found.checkpoint, str(path)), str(path), trusted=args.trust)


def _trained(args: argparse.Namespace) -> bytes:
    import trio

    from uxk.bridges.datalog.reader import DataLog
    from uxk.bridges.datalog.train import Training, train

    async def work() -> Training:
        return await train(args.model, DataLog(args.log), params=param_texts(args.param), seed=args.seed)

    return trio.run(work).checkpoint


def _checkpoint(blob: bytes, where: str) -> bytes:
    """The data of a checkpoint, if versions are those that it was made with: pickles are particular."""
    import msgspec

    from uxk.core.checkpoint import Checkpoint, libraries_of, unpack
    from uxk.ml import versions_of

    try:
        found = msgspec.msgpack.decode(blob, type=Checkpoint)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise UsageError(f"{where}: an unreadable checkpoint: {exc}") from None
    versions = versions_of(libraries_of(blob))
    return unpack(blob, module=found.module, state_version=found.state_version, libraries=versions)


def _unpickled(data: bytes, where: str, *, trusted: bool) -> Any:
    from uxk.bpf.compiler.errors import CompileError
    from uxk.bpf.compiler.unpickle import unpickled

    try:
        return unpickled(data, trusted=trusted)
    except CompileError as exc:
        raise UsageError(f"{where}: {exc}; it could run any code. --trust reads it nevertheless") from None
    except Exception as exc:  # a pickle is code: it may raise anything
        raise UsageError(f"{where}: is no pickle that can be read here: {type(exc).__name__}: {exc}") from None


def _model(state: Any, at: str | None, where: str) -> Any:
    """The model in a state."""
    from uxk.bpf.compiler.models import find_models
    from uxk.core.suggest import did_you_mean

    found = dict(find_models(state))
    there = ", ".join(name or "the whole of it" for name in found) or "none of a kind that can be compiled"
    if at is not None:
        if at not in found:
            raise UsageError(f"{where}: no model at {at!r}{did_you_mean(at, found)}; there is: {there}")
        return found[at]
    if len(found) != 1:
        raise UsageError(
            f"{where}: {len(found)} models in a {type(state).__name__}, name one with --at; there is: {there}"
        )
    return next(iter(found.values()))


def _rows(path: Path, schema: Schema) -> list[list[int]]:
    """Rows of a CSV file in the schema's order, brought into its ranges."""
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for name in schema.names:
            if name not in (reader.fieldnames or ()):
                raise UsageError(
                    f"{path}: no column {name!r}; there are {', '.join(reader.fieldnames or ()) or 'none'}"
                )
        rows = []
        for row in reader:
            try:
                rows.append(list(schema.clamped([int(row[name]) for name in schema.names])))
            except (TypeError, ValueError) as exc:
                raise UsageError(f"{path}, line {reader.line_num}: {exc}; expected whole numbers") from None
    if not rows:
        raise UsageError(f"{path}: no rows")
    return rows
