"""Programs beside the river models, and the nets, that they were made from; here, and in the running kernel."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from linux_judge import Judge
from model_cases import CLASSIFIERS, REGRESSORS, SCHEMA, cost, label, learnt, model_of, net, rows
from river import forest, linear_model, optim, preprocessing, stats, tree
from river.tree.splitter.nominal_splitter_classif import NominalSplitterClassif

from uxk.bpf import insn as i
from uxk.bpf.compiler.compile import Compiled, compile_model, load
from uxk.bpf.compiler.errors import CompileError
from uxk.bpf.compiler.forms import Dense, Forest, Node, Split, Tree, evaluate
from uxk.bpf.compiler.models import Options, find_models
from uxk.bpf.compiler.nets import Net
from uxk.bpf.compiler.report import draw
from uxk.bpf.compiler.schema import Feature, Schema, schema_from
from uxk.bpf.insn import Insn, decode, encode, s64
from uxk.ml import online

EXACT = ("tree", "adaptive", "fast", "scaled")
"""Trees with majority leaves that learnt from whole numbers."""
SCALE = 100
INPUTS = 10_000


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_agree(name: str) -> None:
    model = model_of(name)
    # A forest of river's takes a third of a millisecond for each.
    inputs = 2_000 if isinstance(model, forest.ARFClassifier) else INPUTS
    made = compile_model(model, SCHEMA).compared(model, inputs=inputs)
    assert made.agreement is not None
    assert made.agreement.inputs == inputs
    if name in EXACT:
        assert made.agreement.agreed == inputs
        assert made.model.leaves > 3
    assert made.agreement.ppm >= 998_000
    assert made.model.verdict[0] == min(made.model.values) or isinstance(made.form, Tree)


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressions_agree(name: str) -> None:
    model = model_of(name)
    made = compile_model(model, SCHEMA, Options(scale=SCALE)).compared(model)
    assert made.agreement is not None
    assert made.agreement.ppm == 1_000_000
    assert made.agreement.mean_error_ppm < 510_000  # half of a verdict's unit is rounding
    assert made.model.scale == SCALE
    assert made.label(250) == 2.5


def test_naive_bayes_leaves_become_majority_leaves_if_wanted_and_the_figure_says_so() -> None:
    model = learnt(tree.HoeffdingTreeClassifier(grace_period=40, delta=0.05))
    made = compile_model(model, SCHEMA, Options(majority_leaves=True)).compared(model, inputs=2_000)
    assert made.agreement is not None
    assert made.agreement.ppm < 1_000_000
    assert "naive Bayes leaf became a majority leaf" in made.model.notes[0]
    beside = copy.deepcopy(model)
    beside._leaf_prediction = "mc"
    swap_leaves(beside._root)
    assert (same := made.compared(beside, inputs=2_000).agreement) is not None
    assert same.agreed == 2_000


def swap_leaves(node: Any) -> None:
    """Makes a tree's leaves answer with the majority."""
    for child in getattr(node, "children", ()):
        swap_leaves(child)
    if not hasattr(node, "children"):
        node.deactivate()


def test_less_of_each_weight_agrees_less() -> None:
    model = model_of("net")
    agreed = []
    for bits in (30, 5, 2):
        found = compile_model(model, SCHEMA, Options(bits=bits)).compared(model, inputs=2_000).agreement
        assert found is not None
        agreed.append(found.agreed)
    assert agreed[0] == 2_000 > agreed[1] > agreed[2]


def test_a_threshold_moves_the_line() -> None:
    model = model_of("logistic")
    sure = compile_model(model, SCHEMA, Options(threshold=0.9)).program()
    for x in rows(500, "threshold"):
        chance = model.predict_proba_one(x)[True]
        if abs(chance - 0.9) > 1e-6:
            assert sure.decide(*x.values(), 0) == (chance > 0.9)


def test_a_window_and_a_scaler_without_deviations_are_worked_in() -> None:
    for scaler in (preprocessing.StandardScaler(window_size=50), preprocessing.StandardScaler(with_std=False)):
        optimizer = optim.SGD(0.1 if scaler.with_std else 1e-22)
        model = learnt(scaler | linear_model.LogisticRegression(optimizer), count=500)
        made = compile_model(model, SCHEMA).compared(model, inputs=2_000)
        assert made.agreement is not None
        assert made.agreement.ppm >= 999_000


def test_a_feature_that_never_changed_says_nothing() -> None:
    schema = Schema([Feature("x", 0, 9), Feature("same", 0, 9)])
    model = preprocessing.StandardScaler() | tree.HoeffdingTreeClassifier(grace_period=20, leaf_prediction="mc")
    linear = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    for n in range(600):
        for each in (model, linear):
            each.learn_one({"x": n % 10, "same": 5}, n % 10 > 6)
    for each in (model, linear):
        made = compile_model(each, schema).compared(each, inputs=500)
        assert made.agreement is not None
        assert made.agreement.agreed == 500


def test_nominal_features_are_compared_for_equality() -> None:
    wide, narrow = (Schema([Feature("op", *ends), Feature("size", 0, 100)]) for ends in ((-5, 20), (1, 7)))
    for binary, schema in ((True, wide), (False, wide), (True, narrow), (False, narrow)):
        model = tree.HoeffdingTreeClassifier(
            grace_period=50, nominal_attributes=["op"], binary_split=binary, leaf_prediction="mc", max_depth=4
        )
        rng = Random("nominal")
        for _ in range(4_000):
            x = {"op": rng.randint(0, 8), "size": rng.randint(0, 100)}
            model.learn_one(x, int(x["op"] in (1, 4) or (x["op"] == 7 and x["size"] > 50)))
        made = compile_model(model, schema).compared(model)
        assert isinstance(made.form, Tree)
        assert any(isinstance(node, Split) and node.equal for node in walk(made.form.root))
        assert made.agreement is not None
        assert made.agreement.agreed == INPUTS
        program = made.program()
        for x in ((99, 60), (-99, 60), (7, 999), (0, 0)):
            assert program.decide(*x, 0) == program.decide(*schema.clamped(x), 0)


def walk(node: Node) -> Iterator[Node]:
    """A node and all below."""
    yield node
    if isinstance(node, Split):
        yield from walk(node.left)
        yield from walk(node.right)


def test_what_the_ranges_exclude_is_not_compiled() -> None:
    model = model_of("tree")
    narrow = Schema([f._replace(high=f.low) if f.name != "age" else f for f in SCHEMA.features])
    made, whole = compile_model(model, narrow).compared(model), compile_model(model, SCHEMA)
    assert made.model.leaves < whole.model.leaves
    program = made.program()
    for x in rows(200, "outside"):
        assert program.decide(*x.values(), 0) == program.decide(*narrow.clamped(list(x.values())), 0)
    assert made.agreement is not None
    assert made.agreement.agreed == INPUTS


def test_numbers_outside_the_ranges_count_as_the_nearest_inside() -> None:
    for name in (*CLASSIFIERS, *REGRESSORS):
        made = compile_model(model_of(name), SCHEMA)
        program = made.program()
        for x in ([1 << 62] * 5, [-(1 << 63)] * 5, [0, -1, 10**7, 151, 65]):
            assert program.decide(*x, 0) == program.decide(*SCHEMA.clamped(x), 0)


# --- the running kernel ---


def in_linux(judge: Judge, made: Compiled, inputs: int = INPUTS) -> None:
    """Loads a program and compares its verdicts."""
    assert made.form is not None
    drawn = draw(made.schema, made.form, inputs, seed=7).tolist()
    verdicts = judge.ask(made.code, [made.schema.pack(row) for row in drawn])
    assert not isinstance(verdicts, str), verdicts
    program = made.program()
    assert [s64(r0) for r0 in verdicts] == [program.decide(*row, 0) for row in drawn]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_linux_gives_the_same_verdicts(strict: Judge, name: str) -> None:
    in_linux(strict, compile_model(model_of(name), SCHEMA))


@pytest.mark.parametrize("name", REGRESSORS)
def test_linux_gives_the_same_numbers(strict: Judge, name: str) -> None:
    in_linux(strict, compile_model(model_of(name), SCHEMA, Options(scale=SCALE)))


def test_linux_takes_a_forest_that_would_explode_with_sums_from_immediates(strict: Judge) -> None:
    model = forest.ARFClassifier(n_models=10, leaf_prediction="mc", seed=1, grace_period=5, delta=0.9, tau=0.9)
    made = compile_model(learnt(model, count=500), SCHEMA)
    assert made.model.trees == 10
    assert made.model.leaves > 100
    assert made.model.followed <= made.model.instructions
    in_linux(strict, made)


def test_without_the_zero_from_memory_it_explodes(strict: Judge) -> None:
    made = compile_model(model_of("forest"), SCHEMA)
    load, *others = decode(made.code)
    assert (load.opcode, load.off) == (i.LDX | i.DW | i.MEM, 8 * SCHEMA.spare)
    verdict = strict.ask(encode([Insn(i.ALU64 | i.MOV, load.dst), *others]), [SCHEMA.pack([0] * len(SCHEMA))])
    assert isinstance(verdict, str)
    assert "too large" in verdict or "too complex" in verdict


# --- refusals, and what is found where ---


def test_models_that_cannot_be_compiled() -> None:
    scaler = preprocessing.StandardScaler
    for model, why in (
        (stats.Mean(), "a Mean; what can be compiled is HoeffdingTreeClassifier, "),
        (tree.HoeffdingTreeClassifier(), "has learnt nothing"),
        (forest.ARFClassifier(), "has learnt nothing"),
        (preprocessing.Normalizer() | linear_model.LinearRegression(), "a Normalizer before the model; what can be"),
        (scaler() | scaler() | linear_model.LinearRegression(), "two scalers before the model"),
        (linear_model.LinearRegression(loss=optim.losses.Poisson()), "loss Poisson"),
        (linear_model.LogisticRegression(loss=optim.losses.Squared()), "loss Squared; expected one for two classes"),
        (linear_model.SoftmaxRegression(), "has learnt nothing"),
        (forest.ARFRegressor(), "has learnt nothing"),
        (linear_model.BayesianLinearRegression(), "a BayesianLinearRegression; what can be compiled"),
        (learnt(forest.ARFClassifier(n_models=2, seed=1), count=300), "naive Bayes leaves that vote with others"),
        (scaler() | ("net", net(1, None)), "a scaler before a net"),
        (Net([([[1.0]], [0.0])]), r"weights of shape \(1, 1\).*expected \(outputs, 5\)"),
        (Net([([[1.0] * 5], [float("nan")])]), "layer 1, value 1: the bias is nan; expected a finite number"),
        (Net([([[1.0] * 5] * 2, [0.0] * 2)], "abc"), "2 outputs for 3 labels"),
        (SimpleNamespace(coefs_=[], intercepts_=[], activation="tanh"), "activation 'tanh'"),
    ):
        with pytest.raises(CompileError, match=why):
            compile_model(model, SCHEMA)


def test_weights_that_are_none_and_features_that_are_missing() -> None:
    model = linear_model.LinearRegression()
    model._weights["agee"] = 1.5
    with pytest.raises(CompileError, match=r"asks for 'agee', which the schema has not \(did you mean 'age'\?\)"):
        compile_model(model, SCHEMA)
    model = linear_model.LinearRegression()
    model._weights["age"] = float("inf")
    with pytest.raises(CompileError, match="the weight of 'age' is inf; expected a finite number"):
        compile_model(model, SCHEMA)
    model._weights["age"] = 1e12
    with pytest.raises(CompileError, match=r"the model may be as large as 2\*\*75, beyond 2\*\*60"):
        compile_model(model, SCHEMA)
    for options, why in (
        (Options(scale=0), "scale 0"), (Options(threshold=1.0), "threshold 1.0"), (Options(bits=31), "31 bits"),
    ):  # fmt: skip
        with pytest.raises(CompileError, match=why):
            compile_model(model_of("logistic"), SCHEMA, options)


def test_alternate_leaves_of_adaptive_trees_vote() -> None:
    schema, rng = Schema([Feature(name, 0, 100) for name in "abc"]), Random("drift")
    quick: dict[str, Any] = {"seed": 1, "grace_period": 30, "drift_window_threshold": 30, "delta": 0.1}
    one = tree.HoeffdingAdaptiveTreeClassifier(leaf_prediction="mc", **quick)
    other = tree.HoeffdingAdaptiveTreeRegressor(leaf_prediction="mean", **quick)
    alive = 0
    for n in range(9_000):
        x = {name: rng.randint(0, 100) for name in "abc"}
        y = int(x["abc"[n // 1_500 % 3]] > 50) ^ (x["b"] > 90) ^ (rng.random() < 0.1)
        one.learn_one(x, y)
        other.learn_one(x, 10 * y + x["b"] / 7)
        for model in (one, other):
            if n % 60 == 59 and any(hasattr(b, "_alternate_tree") and b._alternate_tree for b in branches(model._root)):
                made = compile_model(model, schema, Options(scale=10)).compared(model, inputs=200)
                assert made.agreement is not None
                assert (made.agreement.agreed, made.model.notes) == (200, ())
                alive += 1
    assert alive > 3


def branches(node: Any) -> Iterator[Any]:
    """Inner nodes of a tree of river's."""
    if hasattr(node, "children"):
        yield node
        for child in node.children:
            yield from branches(child)


def test_an_alternate_tree_with_branches_is_refused_as_river_has_no_answer() -> None:
    model = copy.deepcopy(model_of("adaptive"))
    model._root._alternate_tree = next(b for b in branches(model._root) if b is not model._root)
    with pytest.raises(AttributeError):
        model.predict_one(rows(1)[0])
    with pytest.raises(CompileError, match="an alternate tree with branches: river itself has no answer there"):
        compile_model(model, SCHEMA)


def test_models_are_found_in_what_an_agent_keeps() -> None:
    guarded = online("linear_model.LinearRegression")
    state = {"seen": 3, "parts": [stats.Mean(), SimpleNamespace(model=guarded, name="x")], "text": "model"}
    assert list(find_models(state)) == [("parts.1.model", guarded)]
    assert list(find_models(guarded)) == [("", guarded)]
    assert list(find_models([1, "a", None])) == []


def test_a_guarded_model_compiles_like_the_model() -> None:
    guarded = learnt(online("tree.HoeffdingTreeClassifier", leaf_prediction="mc", grace_period=40, delta=0.05))
    assert compile_model(guarded, SCHEMA).code == compile_model(guarded.model, SCHEMA).code


def test_nets_that_keep_their_arrays_like_others_do() -> None:
    made = net(3, ("a", "b", "c"))
    other = SimpleNamespace(
        coefs_=[np.asarray(w).T for w, _ in made.layers], intercepts_=[b for _, b in made.layers], activation="relu",
        classes_=np.array(["a", "b", "c"]),
    )  # fmt: skip
    plain = Schema([Feature(f"x{n}", -9, 9) for n in range(5)])
    assert compile_model(other, plain).code == compile_model(made._replace(means=(), deviations=()), plain).code


# --- files ---


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = model_of("seven")
    made = compile_model(model, SCHEMA).compared(model, inputs=100)
    code, beside = made.save(tmp_path / "seven.bpf")
    found = load(code)
    assert found == made._replace(form=None)
    assert found.label(3) == "d"
    assert isinstance(made.form, Forest)
    x = tuple(rows(1)[0].values())
    assert found.program().decide(*x, 0) == evaluate(made.form, x)
    with pytest.raises(CompileError, match="no decision form"):
        found.compared(model)
    code.write_bytes(made.code[:-8] + made.code[:8])
    with pytest.raises(CompileError, match="is not the program that"):
        load(code)
    beside.write_text("{}")
    with pytest.raises(CompileError, match="expected what uxk compile writes"):
        load(code)
    with pytest.raises(CompileError, match="the program cannot be called"):
        made.save(tmp_path / "seven.json")


def test_schemas_from_json() -> None:
    text = '[{"name": "x", "low": -1, "high": 7, "unit": "ms", "slot": 0}]'
    assert schema_from(text) == Schema([Feature("x", -1, 7, "ms")])
    for wrong, why in (
        ("[", "expected a list of objects"), ('[{"name": "x"}]', "missing required field `low`"),
        ('[{"name": "x", "low": 0.5, "high": 1}]', "Expected `int`"),
        ('[{"name": "x", "low": 0, "high": 1, "slot": 2}]', "'x' has slot 2, but is number 0"),
    ):  # fmt: skip
        with pytest.raises(CompileError, match=why):
            schema_from(wrong)


def test_the_same_model_gives_the_same_code() -> None:
    model = model_of("forest")
    again = pickle.loads(pickle.dumps(model))
    assert compile_model(model, SCHEMA).code == compile_model(again, SCHEMA).code
    assert label(rows(1)[0]) in (0, 1)
    assert cost(rows(1)[0]) == cost(rows(1)[0])
    assert isinstance(compile_model(model_of("net"), SCHEMA).form, Dense)


# --- hostile figures ---


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda leaf: leaf.stats.update({0: float("nan")}), "the weight of a leaf is nan"),
        (lambda leaf: setattr(deviation(leaf), "_S", float("inf")), "a variance of 'y' is inf"),
        (lambda leaf: setattr(deviation(leaf).mean, "_mean", float("nan")), "a mean of 'y' is nan"),
        (
            lambda leaf: leaf.splitters.update(x=NominalSplitterClassif()),
            "a naive Bayes leaf with a NominalSplitterCla",
        ),
    ],
)
def test_naive_bayes_leaves_with_figures_that_are_none(change: Any, why: str) -> None:
    schema, model = Schema([Feature("x", 0, 100), Feature("y", -(1 << 61), 1 << 61)]), narrow_and_wide()
    made = compile_model(model, schema).compared(model, inputs=2_000)
    assert made.agreement is not None
    assert made.agreement.ppm >= 998_000
    change(model._root)
    with pytest.raises(CompileError, match=why):
        compile_model(model, schema)


def narrow_and_wide() -> Any:
    """A tree that is one leaf: of a feature that is nearly always the same, and one that goes far."""
    model = tree.HoeffdingTreeClassifier(leaf_prediction="nb")
    for n in range(150):
        model.learn_one({"x": 50 + (n % 7 == 0), "y": n * 10**14}, n % 2)
    return model


def deviation(leaf: Any) -> Any:
    """What a leaf knows of y."""
    return leaf.splitters["y"]._att_dist_per_class[0]._var


def test_figures_of_other_kinds() -> None:
    one = Schema([Feature("x", 0, 9)])
    huge = tree.HoeffdingTreeRegressor(leaf_prediction="mean")
    for n in range(20):
        huge.learn_one({"x": n % 9}, 1e300)
    sure = linear_model.LinearRegression()
    sure.intercept = 10**400
    for model, why in (
        (huge, r"a leaf's mean is 1e\+300, scaled, beyond"), (sure, "expected a number that is not too large"),
        (Net([([[1.0]], 0.0)], (0, 1)), r"biases of shape \(\)"),
        (Net([([["a"]], [0.0])], (0, 1)), "arrays of numbers"),
        (Net([([[1.0]], [0.0])], (0, 1), (1, 2)), "2 means for a net of 1 features"),
        (Net([], (0, 1)), "a net of 0 outputs"), (Net([([[1.0]] * 3, [0.0] * 3)], (0, 1)), "3 outputs for 2 labels"),
    ):  # fmt: skip
        with pytest.raises(CompileError, match=why):
            compile_model(model, one)
    for wrong in (("x", "a", "b"), ("x", 0.5, 1), (7, 0, 1), ("x", None, 1)):
        with pytest.raises(CompileError, match="expected a name, and two whole numbers"):
            Schema([Feature(*wrong)])  # type: ignore[arg-type]
