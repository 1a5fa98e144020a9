"""A kernel with a dataset log: it is the same run, and what was published is there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import uxk
from uxk.bridges.datalog import arrow
from uxk.bridges.datalog.files import segments
from uxk.bridges.datalog.recorder import PATH, open_datalog
from uxk.cli import main
from uxk.core.rows import feature_dicts
from uxk.errors import UsageError

ROWS = np.dtype([("page", "<u4"), ("name", "S3"), ("v", ">i2", (2,)), ("ok", "?")])


async def publish(kernel: uxk.Kernel, generations: int = 20) -> None:
    """A model with two datasets, one pushed, one pulled."""
    proxy = kernel.create_model("demo", "m0")
    pushed = proxy.dataset("pushed", ROWS, 16)
    pulled = proxy.dataset("pulled", [("x", "<u8")], 4, extract=lambda dataset: dataset.append([(kernel.now_ns,)]))
    for each in range(generations):
        pushed.append([(each, b"ab", (each, -each), each % 2 == 0)] * (each % 10))
        pushed.publish()
        await kernel.sleep_ns(1000)
    pulled.extract()
    proxy.stop()
    pushed.append([(99, b"", (0, 0), False)])
    pushed.publish()


async def logged(folder: Path, **settings: Any) -> tuple[str, dict[str, int | str]]:
    """The event hash of a run with a log, and the log's counters."""
    kernel = uxk.Kernel(seed=5)
    with uxk.DataLogRecorder(kernel, uxk.DataLogSettings(dir=str(folder), **settings), scenario="test") as log:
        async with kernel:
            await publish(kernel)
            found = kernel.event_hash()
            assert kernel.sysfs.read(f"{PATH}/dir") == str(folder)
            assert kernel.sysfs.stat(f"{PATH}/batches").mode & 0o777 == 0o400
        log.close()
        return found, log.statistics()


async def test_everything_published_is_there_and_the_run_is_the_same(tmp_path: Path) -> None:
    with_log, figures = await logged(tmp_path)
    kernel = uxk.Kernel(seed=5)
    async with kernel:
        await publish(kernel)
        assert kernel.event_hash() == with_log
    log = uxk.DataLog(tmp_path)
    rows = log["m0/pushed"].rows()
    assert [(int(row["uxk_generation"]), int(row["page"])) for row in rows] == [
        (each + 1, each) for each in range(20) for _ in range(each % 10)
    ]
    assert [int(row["uxk_time_ns"]) for row in rows if row["page"] == 7] == [7000] * 7
    assert log["m0/pulled"].rows()["x"].tolist() == [20_000]
    assert sum(1 for _ in log.batches("m0/pushed")) == 20, "of a stopped model, nothing"
    assert (figures["batches"], figures["rows"], figures["dropped_batches"]) == (21, 91, 0)
    (run,) = (batch.run for batch in log.batches("m0/pulled"))
    assert (run.head.seed, run.head.clock, run.head.scenario) == (5, "virtual", "test")
    assert {"uxk", "numpy", "river", "python"} <= set(run.head.versions)


async def test_only_what_is_wanted(tmp_path: Path) -> None:
    await logged(tmp_path, datasets=("*/pull*",))
    assert {batch.name for batch in uxk.DataLog(tmp_path).batches()} == {"m0/pulled"}


async def test_a_kernel_has_one_log_and_a_log_one_kernel(tmp_path: Path) -> None:
    kernel, other = uxk.Kernel(), uxk.Kernel()
    with uxk.DataLogRecorder(kernel, uxk.DataLogSettings(dir=str(tmp_path))):
        with pytest.raises(UsageError, match="are logged already"):
            uxk.DataLogRecorder(kernel, uxk.DataLogSettings(dir=str(tmp_path / "b")))
        with pytest.raises(uxk.InUse, match="writes this log"):
            uxk.DataLogRecorder(other, uxk.DataLogSettings(dir=str(tmp_path)))
    with pytest.raises(UsageError, match="dir is empty"):
        uxk.DataLogRecorder(other, uxk.DataLogSettings())
    with open_datalog(uxk.DataLogSettings(dir=str(tmp_path)), other, part="a/b:c") as log:
        assert log is not None and log.statistics()["dir"] == str(tmp_path / "a_b_c")


async def test_recovery_is_told_in_the_kernels_log(tmp_path: Path) -> None:
    await logged(tmp_path)
    path = segments(tmp_path)[0].path
    path.write_bytes(path.read_bytes()[:-20])
    kernel = uxk.Kernel()
    with uxk.DataLogRecorder(kernel, uxk.DataLogSettings(dir=str(tmp_path))):
        lines = [record.text for record in kernel.kmsg.reader("oldest")]
    assert len(lines) == 1
    assert lines[0].startswith(f"{path.name}: cut off at offset ")


# --- other programs ---


async def test_other_libraries_open_the_log_as_it_is(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    duckdb = pytest.importorskip("duckdb")
    await logged(tmp_path)
    data = uxk.DataLog(tmp_path)["m0/pushed"]
    table = pa.table(data)
    wanted = data.rows()
    assert table.num_rows == len(wanted) == 90
    assert table["v"].to_pylist() == wanted["v"].tolist()
    assert table["name"].to_pylist() == wanted["name"].tolist()
    assert table["ok"].to_pylist() == wanted["ok"].tolist()
    about = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert (about["uxk.subsystem"], about["uxk.dataset"], about["uxk.seed"]) == ("demo", "pushed", "5")
    assert about["uxk.version.numpy"] == np.__version__
    sql = "select count(*), max(page), count(distinct uxk_generation) from data"
    assert duckdb.sql(sql).fetchall() == [(90, 19, 18)]


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".csv", ".jsonl"])
async def test_exports_have_the_same_rows(tmp_path: Path, ending: str) -> None:
    await logged(tmp_path / "log")
    data, out = uxk.DataLog(tmp_path / "log")["m0/pushed"], tmp_path / f"out{ending}"
    if ending in (".parquet", ".arrow"):
        pytest.importorskip("pyarrow")
    assert arrow.export(data, out) == 90
    wanted = [
        {k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()} for row in feature_dicts(data.rows())
    ]
    match ending:
        case ".parquet":
            found = pytest.importorskip("pyarrow.parquet").read_table(out, page_checksum_verification=True)
            assert found["page"].to_pylist() == [row["page"] for row in wanted]
        case ".arrow":
            found = pytest.importorskip("pyarrow").ipc.open_file(out).read_all()
            assert found["page"].to_pylist() == [row["page"] for row in wanted]
        case ".jsonl":
            assert [json.loads(line) for line in out.read_text().splitlines()] == wanted
        case _:
            lines = out.read_text().splitlines()
            assert lines[0] == ",".join(wanted[0])
            assert lines[1:] == [",".join(map(str, row.values())) for row in wanted]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


async def test_exports_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await logged(tmp_path / "log")
    data = uxk.DataLog(tmp_path / "log")["m0/pushed"]
    with pytest.raises(UsageError, match=r"ends in \.parquet, \.arrow, \.csv, \.jsonl"):
        arrow.export(data, tmp_path / "x.xls")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="needs pyarrow") as caught:
        arrow.export(data, tmp_path / "x.parquet")
    assert caught.value.errno == errno.ENOPKG
    assert os.listdir(tmp_path) == ["log"]


# --- the command ---


async def test_the_command_shows_exports_and_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await logged(tmp_path / "log")
    log = str(tmp_path / "log")

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["dataset", *words])
        out, err = capsys.readouterr()
        return code, out, err

    code, out, _ = run("ls", log)
    assert code == 0
    assert out.splitlines()[0].split() == ["DATASET", "RUNS", "BATCHES", "ROWS", "BYTES", "FROM_NS", "TO_NS"]
    assert out.splitlines()[2].split()[:4] == ["m0/pushed", "1", "20", "90"]
    assert run("show", log, "m0/pulled")[1] == "m0/pulled of demo: 1 rows in 1 batches, 20000 to 20000 ns\n  x <u8\n"
    assert json.loads(run("show", log, "--json")[1])["runs"][0]["seed"] == 5
    assert "seed=5 clock=virtual scenario=test" in run("show", log)[1]
    assert len(run("head", log, "m0/pushed", "-n", "3")[1].splitlines()) == 3
    assert run("export", log, "m0/pushed", str(tmp_path / "x.csv"))[:2] == (
        0,
        f"m0/pushed: 90 rows to {tmp_path}/x.csv\n",
    )
    assert run("head", log, "m0/pulle")[::2] == (
        1, "uxk: dataset: no dataset 'm0/pulle' (did you mean 'm0/pulled'?); there are: m0/pulled, m0/pushed [ENOENT]\n"
    )  # fmt: skip
    assert run("head", log)[0] == run("export", log, "m0/pushed")[0] == run("ls", log, "a", "b")[0] == 2
    path = segments(tmp_path / "log")[0].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    code, out, err = run("verify", log)
    assert code == 1
    assert "damaged at offset" in err
    assert not json.loads(run("verify", log, "--json")[1])["good"]
    assert run("head", log, "m0/pushed", "-n", "99")[0] == 1
    assert run("head", log, "m0/pushed", "--damaged", "-n", "99")[0] == 0


def test_looking_needs_neither_kernel_nor_pyarrow(tmp_path: Path) -> None:
    program = "import sys; from uxk.cli import main; main(['dataset', 'ls', sys.argv[1]]); print(*sys.modules)"
    (tmp_path / "lock").touch()
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert not [name for name in loaded if name.startswith(("uxk.kernel", "pyarrow", "river", "trio"))]


def test_boot_keeps_a_log_and_two_kernels_do_not_share_one(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "uxk", "boot", "--json", "--socket", str(tmp_path / "s"), "--datasets"]
    with subprocess.Popen([*program, str(tmp_path / "log")], stdout=subprocess.PIPE) as kernel:
        assert kernel.stdout is not None
        assert json.loads(kernel.stdout.readline())["pid"] == kernel.pid
        other = subprocess.run([*program, str(tmp_path / "log")], capture_output=True, text=True, check=False)
        assert (other.returncode, other.stdout) == (1, "")
        assert f"process {kernel.pid} writes this log [EBUSY]" in other.stderr
        kernel.terminate()
        assert kernel.wait() == 0
