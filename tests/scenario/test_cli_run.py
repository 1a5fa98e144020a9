"""``uxk run`` from outside: exit codes, output, equal seeds in fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

MODULE = '''
from __future__ import annotations
import uxk

class Tool(uxk.Extension):
    """Answers after a while that it draws by lot."""
    manifest = uxk.Manifest(name="cli-tool", license="MIT", fate="reissue",
        restart=uxk.RestartPolicy(max_restarts=1000, backoff_ns=1000))

    def on_batch(self, ctx, requests):
        ctx.call_later_ns(int(ctx.random().integers(1, 9000)), lambda _: [ctx.complete(r) for r in requests])

class Beside(uxk.Extension):
    """A Trio task that submits to the tool."""
    manifest = uxk.Manifest(name="cli-beside", license="MIT", kind="ml-agent",
        capabilities=("device:cli_tool0:submit",))

    async def run(self, ctx):
        cap = (await ctx.open_device("cli_tool0")).result
        for _ in range(50):
            await ctx.submit(cap)
            await ctx.sleep_ns(int(ctx.random().integers(1, 5000)))

SCENARIO = uxk.Scenario(
    name="cli",
    seed=5,
    modules=(uxk.scenario.Load(name="cli-tool"), uxk.scenario.Load(name="cli-beside")),
    workloads=(
        uxk.scenario.ClosedLoop(device="cli_tool0", depth=8, count=500),
        uxk.scenario.OpenLoop(name="open", device="cli_tool0", rate_per_s=100_000, count=200),
    ),
    faults=(uxk.scenario.Fault(kind="crash", module="cli-tool", probability_ppm=20_000),),
    checks=(uxk.scenario.Check(value="workloads.load.completed", op="==", than=500),),
)
'''


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "cli.py"
    path.write_text(MODULE.replace("import uxk\n", "import uxk\nimport uxk.scenario\n", 1))
    return path


def uxk_run(*args: object, hash_seed: str = "0", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "uxk", "run", *map(str, args)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1", "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        encoding="utf-8",
    )


def test_equal_seeds_give_equal_hashes_in_fresh_processes(scenario: Path) -> None:
    hashes = set()
    for hash_seed in ("0", "1", "4711", "random"):
        done = uxk_run(scenario, "--json", "--seed", 9, hash_seed=hash_seed)
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert summary["seed"] == 9
        assert summary["results"]["faults"]["crash-0"]["fired"] > 0
        hashes.add((summary["event_hash"], summary["virtual_ns"], summary["events"]))
    assert len(hashes) == 1


def test_several_seeds(scenario: Path, tmp_path: Path) -> None:
    done = uxk_run(scenario, "--seeds", 3, "--out", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "3 of 3 runs good"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["seed-5", "seed-6", "seed-7"]
    assert len({line.split()[3] for line in done.stdout.splitlines()[:3]}) == 3


def test_a_failing_seed_says_why_and_where(scenario: Path, tmp_path: Path) -> None:
    done = uxk_run(scenario, "--seeds", 1, "--seed", 6, "--out", tmp_path / "runs", "-o", "workloads.load.count=7")
    assert done.returncode == 1
    done = uxk_run(scenario, "--seeds", 2, "--out", tmp_path / "more", "-o", "workloads.load.count=7")
    line = done.stdout.splitlines()[0]
    assert line.endswith(f"✘ workloads.load.completed == 500 (7); see {tmp_path / 'more' / 'seed-5'}")


def test_a_good_run_prints_a_report_and_exits_with_0(scenario: Path) -> None:
    done = uxk_run(scenario)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "✔ workloads.load.completed == 500  (500)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("host time ")


def test_verbose_prints_the_log_to_stderr(scenario: Path) -> None:
    done = uxk_run(scenario, "-v")
    assert "kernel: booted, seed 5" in done.stderr
    assert "oops" in done.stderr


def test_a_failed_check_exits_with_1(scenario: Path) -> None:
    done = uxk_run(scenario, "-o", "workloads.load.count=7")
    assert done.returncode == 1
    assert "✘ workloads.load.completed == 500  (7)" in done.stdout


def test_a_broken_invariant_exits_with_3(scenario: Path, tmp_path: Path) -> None:
    path = tmp_path / "lies.toml"
    path.write_text(
        f"modules = [{{ file = '{scenario.parent / 'tool.py'}' }}]\n"
        "workloads = [{ device = 'cli_tool0', count = 40, verify = true, read_ppm = 0 }]\n"
    )
    (scenario.parent / "tool.py").write_text(MODULE.split("class Beside")[0])
    done = uxk_run(path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "✘ data-intact" in done.stdout


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["nowhere.toml"], "No such file"),
        (["crash-under-lode"], "did you mean 'crash-under-load'"),
        (["{}", "-o", "workloads.load.deep=1"], "unknown key 'deep'"),
        (["{}", "-o", "until"], "expected KEY=VALUE"),
        (["{}", "-o", "modules.cli_tool.params.x=1"], "unknown parameter 'x'"),
        (["{}", "-o", "modules.0.name=cli_tolo"], "cli_tolo"),
        (["{}", "--seed", "-1"], "expected 0 to"),
        (["{}", "--seed", "x"], "is no number"),
        (["{}", "--seeds", "0"], "expected 1 to"),
        (["{}", "--costs", "/dev/null"], "--costs /dev/null"),
        (["{}", "--out", "/dev/null"], "not an empty folder"),
        ([], "required"),
    ],
)
def test_wrong_usage_exits_with_2(scenario: Path, args: list[str], complaint: str) -> None:
    done = uxk_run(*(word.format(scenario) for word in args))
    assert done.returncode == 2, done.stdout + done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_list() -> None:
    done = uxk_run("list")
    assert done.returncode == 0
    assert any(line.startswith("crash-under-load") for line in done.stdout.splitlines())
    assert "crash-under-load" in json.loads(uxk_run("list", "--json").stdout)
