"""``uxk compile``: pickles, checkpoints and agents become programs; everything else an error that says why."""

from __future__ import annotations

import importlib
import json
import os
import pickle
from pathlib import Path
from random import Random

import numpy
import pytest
import river.datasets
import trio
from river import linear_model, preprocessing, tree

import uxk
from uxk.bpf.compiler.compile import load
from uxk.bpf.compiler.nets import Net
from uxk.cli import main
from uxk.core.checkpoint import pack
from uxk.core.trained import to_file
from uxk.ml import versions_of

AGENT = """
import pickle
import uxk


class Pupil(uxk.MLAgent):
    manifest = uxk.Manifest(name="pupil", version="1", author="a", license="MIT", description="d", kind="ml-agent")
    model = "m0"
    checkpoint_every = 0

    def setup(self, ctx):
        self.online = uxk.online("tree.HoeffdingTreeRegressor", leaf_prediction="mean", grace_period=20)

    def on_dataset(self, ctx, dataset):
        self.online.learn_many(dataset.rows, "y")

    def checkpoint(self):
        return pickle.dumps({"seen": 1, "online": self.online})
"""
SCHEMA = [{"name": "x", "low": 0, "high": 100, "unit": "ms"}, {"name": "z", "low": -5, "high": 5}]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a schema and two models: a tree that is right, and a sum."""
    monkeypatch.chdir(tmp_path)
    Path("schema.json").write_text(json.dumps(SCHEMA))
    good = tree.HoeffdingTreeClassifier(grace_period=30, leaf_prediction="mc", delta=0.1)
    rest = preprocessing.StandardScaler() | linear_model.LinearRegression()
    rng = Random("compile")
    for _ in range(500):
        x = {"x": rng.randint(0, 100), "z": rng.randint(-5, 5)}
        good.learn_one(x, "slow" if x["x"] > 60 else "fast")
        rest.learn_one(x, 2.5 * x["x"] - x["z"])
    Path("good.pickle").write_bytes(pickle.dumps(good))
    Path("both.pickle").write_bytes(pickle.dumps({"good": good, "rest": [rest]}))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], words: str) -> tuple[int, str, str]:
    code = main(["compile", *words.split()])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_pickle_becomes_a_program_and_a_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "good.pickle -s schema.json --count 500")
    assert code == 0
    assert out.startswith("HoeffdingTreeClassifier: ")
    assert "agrees with the model on 100.0 % of 500 inputs drawn" in out
    made = load("good.bpf")
    program = made.program()
    assert [made.label(program.decide(x, 0, 0)) for x in (0, 100)] == ["fast", "slow"]
    report = json.loads(Path("good.json").read_text())
    assert report["schema"][0] == {"name": "x", "low": 0, "high": 100, "unit": "ms", "slot": 0}
    assert (report["spare_slot"], report["agreement"]["ppm"]) == (2, 1_000_000)
    assert report["instructions"] == len(made.code) // 8


def test_a_model_of_several_by_its_place(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, "both.pickle -s schema.json")
    assert (code, out) == (1, "")
    assert "2 models in a dict, name one with --at; there is: good, rest.0" in err
    code, _, err = said(capsys, "both.pickle -s schema.json --at rest.1")
    assert code == 1
    assert "no model at 'rest.1' (did you mean 'rest.0'?)" in err
    code, out, _ = said(capsys, "both.pickle -s schema.json --at rest.0 --scale 10 --json -o sum.bpf")
    told = json.loads(out)
    assert (code, told["kind"], told["scale"], told["agreement_ppm"]) == (0, "LinearRegression", 10, 1_000_000)
    assert abs(load("sum.bpf").program().decide(40, 2, 0) - 980) < 100


def test_given_rows_and_a_figure_to_reach(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.csv").write_text("z,other,x\n0,1,7\n3,a,1000\n")
    code, out, _ = said(capsys, "good.pickle -s schema.json --inputs rows.csv")
    assert code == 0
    assert "100.0 % of 2 inputs given" in out
    bayes = tree.HoeffdingTreeClassifier(grace_period=10_000)
    for n in range(400):
        bayes.learn_one({"x": n % 100, "z": 0}, n % 100 > 60)
    Path("bayes.pickle").write_bytes(pickle.dumps(bayes))
    code, out, err = said(capsys, "bayes.pickle -s schema.json --majority-leaves --agree 99 --count 300")
    assert code == 1
    assert "naive Bayes leaf became a majority leaf" in out
    assert "agrees on less than 99 %: nothing is written" in err
    assert not Path("bayes.bpf").exists()
    code, out, _ = said(capsys, "bayes.pickle -s schema.json --majority-leaves --count 300")
    assert code == 0
    code, out, _ = said(capsys, "bayes.pickle -s schema.json --count 300")
    assert code == 0
    assert "agrees with the model on 100.0 % of 300" in out


class Call:
    """What a stranger would put into a pickle."""

    def __init__(self, call: object, *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call, self.arguments


def test_a_pickle_that_is_code_is_not_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = Path("good.pickle").read_bytes()
    for number, call in enumerate((
        Call(os.mkdir, "made"), Call(eval, "1"), Call(getattr, [], "sort"), Call(importlib.import_module, "this"),
        Call(river.datasets.Phishing), Call(numpy.load, "x"),
    )):  # fmt: skip
        name = f"code{number}"
        Path(f"{name}.pkl").write_bytes(pickle.dumps([call]))
        blob = pack(pickle.dumps([call]), module="gc", state_version=3, libraries=versions_of(("python", "river")))
        Path(f"{name}.ckpt").write_bytes(to_file(blob, {}))
        for suffix in ("pkl", "ckpt"):
            code, out, err = said(capsys, f"{name}.{suffix} -s schema.json")
            assert (code, out) == (1, "")
            assert "of which no model of river's consists; it could run any code. --trust reads it" in err
    assert not Path("made").exists()
    # A name that leads from a module of river to another one.
    Path("through.pkl").write_bytes(b"\x80\x04\x8c\x10river.tree.utils\x8c\x08sys.exit\x93.")
    assert "names river.tree.utils.sys.exit" in said(capsys, "through.pkl -s schema.json")[2]
    code, _, err = said(capsys, "code0.pkl -s schema.json --trust")
    assert (code, Path("made").is_dir()) == (1, True)
    assert "0 models in a list" in err
    Path("same.pkl").write_bytes(good)
    assert said(capsys, "same.pkl -s schema.json --trust --count 10")[0] == 0


def test_a_net_with_its_weights_as_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = numpy.random.default_rng(1)
    net = Net(
        [(rng.normal(size=(4, 2)), rng.normal(size=4)), (rng.normal(size=(1, 4)), rng.normal(size=1))], ("a", "b")
    )
    Path("net.pickle").write_bytes(pickle.dumps(net))
    code, out, _ = said(capsys, "net.pickle -s schema.json --tables --count 100")
    assert code == 0
    assert "its weights: net.weights, 72 bytes" in out
    assert load("net.bpf").program().decide(3, 4, 0) in (0, 1)


def test_checkpoints_of_the_same_versions_only(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path("good.pickle").read_bytes()
    for name, libraries in (("same", versions_of(("python", "river"))), ("older", {"river": "0.1"})):
        blob = pack(data, module="gc", state_version=3, libraries=libraries)
        Path(f"{name}.ckpt").write_bytes(to_file(blob, {}))
    code, _, _ = said(capsys, "same.ckpt -s schema.json --count 10")
    assert code == 0
    assert Path("same.bpf").read_bytes()
    code, _, err = said(capsys, "older.ckpt -s schema.json")
    assert code == 1
    assert "river 0.1, expected" in err


def test_an_agent_is_trained_from_a_log_first(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pupil.py").write_text(AGENT)

    async def publish() -> None:
        kernel, rng = uxk.Kernel(seed=1), Random("log")
        with uxk.DataLogRecorder(kernel, uxk.DataLogSettings(dir="log")):
            async with kernel:
                data = kernel.create_model("demo", "m0").dataset("d", [("x", "<i4"), ("z", "<i4"), ("y", "<i8")], 100)
                for _ in range(6):
                    drawn = [(rng.randint(0, 100), rng.randint(-5, 5)) for _ in range(100)]
                    data.append([(x, z, 100 if x > 50 else 3) for x, z in drawn])
                    data.publish()
                    await kernel.sleep_ns(1000)

    trio.run(publish)
    code, out, _ = said(capsys, "pupil.py -s schema.json --from log --count 200")
    assert code == 0, out
    assert out.startswith("HoeffdingTreeRegressor: ")
    assert [load("pupil.bpf").program().decide(x, 0, 0) for x in (0, 100)] == [3, 100]


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        ("good.pickle", 2, "-s/--schema"),
        ("none.ckpt -s schema.json", 2, "none.ckpt: no such file; give a checkpoint"),
        ("good.pickle -s none.json", 1, "none.json"),
        (
            "schema.json -s schema.json",
            1,
            "schema.json: no checkpoint of uxk train; a pickle is called .pickle or .pkl",
        ),
        ("broken.pkl -s schema.json", 1, "broken.pkl: is no pickle that can be read here"),
        ("number.pkl -s schema.json", 1, "0 models in a int, name one with --at; there is: none"),
        ("good.pickle -s good.pickle", 1, "expected a list of objects with name, low and high"),
        ("good.pickle -s schema.json --count 0", 2, "--count 0"),
        ("good.pickle -s schema.json --agree 101", 2, "--agree 101.0: expected 0 to 100"),
        ("good.pickle -s schema.json -p a=1", 2, "--param is for training"),
        ("good.pickle -s schema.json --inputs a.csv", 1, "a.csv: no column 'x'; there are y, z"),
        ("good.pickle -s schema.json --inputs b.csv", 1, "b.csv, line 2: invalid literal"),
        ("good.pickle -s schema.json --inputs c.csv", 1, "c.csv: no rows"),
        ("good.pickle -s schema.json -o schema.bpf", 2, "schema.json would be written over, which is the --schema"),
        ("good.pickle -s schema.json -o good.pickle", 2, "good.pickle would be written over, which is the model"),
        ("good.pickle -s schema.json -o .", 2, "-o .: expected the name of a file"),
        ("good.pickle -s schema.json -o x.json", 1, "the program cannot be called .json"),
    ],
)
def test_mistakes_are_explained(
    here: Path, capsys: pytest.CaptureFixture[str], words: str, code: int, why: str
) -> None:
    Path("broken.pkl").write_bytes(b"\x80\x04N")
    Path("number.pkl").write_bytes(pickle.dumps(3))
    Path("a.csv").write_text("y,z\n1,2\n")
    Path("b.csv").write_text("x,z\n1,2.5\n")
    Path("c.csv").write_text("x,z\n")
    found, out, err = said(capsys, words)
    assert (found, out) == (code, "")
    assert why in err
