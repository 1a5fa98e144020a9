"""``--log``, ``--metrics``, ``--perfetto``, ``uxk metrics`` and ``uxk dmesg --file``, as typed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from uxk.cli import main

pytest.importorskip("prometheus_client")
ROOT = Path(__file__).resolve().parents[2]
LINE = '{"seq":%d,"time_ns":%d,"level":"%s","source":"disk","text":"%s"}\n'


def test_a_booted_kernel_logs_and_is_scraped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "uxk", "boot", "--socket", "k", "--metrics", "0", "--log", "log", "--load", "null"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    kernel = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert kernel.stdout is not None
        url = re.search(r"http://127\.0\.0\.1:\d+/metrics", kernel.stdout.readline())
        assert url is not None
        kernel.stdout.readline()  # booted, and null is loaded
        with urllib.request.urlopen(url[0]) as answer:
            assert b'uxk_module_info{driver_class="block",module="null"' in answer.read()
        socket = str(tmp_path / "k")
        assert main(["metrics", "-k", socket]) == 0
        assert 'uxk_module_state{module="null",uxk_module_state="live"} 1.0' in capsys.readouterr().out
        assert main(["metrics", "-k", socket, "--openmetrics"]) == 0
        assert capsys.readouterr().out.endswith("# EOF\n")
        assert main(["metrics", "-k", socket, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["modules"][0]["name"] == "null"
    finally:
        kernel.send_signal(signal.SIGTERM)
        assert kernel.communicate(timeout=60)[1] == ""
    assert main(["dmesg", "--file", str(tmp_path / "log")]) == 0
    assert "kernel: shut down" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("option", [["--metrics", "nowhere"], ["--metrics", "192.0.2.1:0"], ["--log", "/dev/null"]])
def test_boot_says_what_cannot_be(option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "--socket", str(tmp_path / "k"), *option]) == 1
    assert "uxk: boot: " in capsys.readouterr().err
    assert not (tmp_path / "k").exists()


def test_dmesg_reads_files_and_names_bad_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    (tmp_path / "log.1").write_text(LINE % (0, 10**9, "info", "first"))
    log.write_text(LINE % (1, 2 * 10**9, "err", "second\\u001b[1m") + "garbage\n" * 12)
    assert main(["dmesg", "--file", str(log)]) == 1
    out, err = capsys.readouterr()
    assert out == "[    1.000000] disk: first\n[    2.000000] disk: second\\x1b[1m\n"
    assert f"{log}:2: " in err and f"{log}:9: " in err and f"{log}:10: " not in err and "12 lines are no records" in err
    assert main(["dmesg", "-F", str(tmp_path / "log.1"), "--level", "err+"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["dmesg", "-F", str(tmp_path / "none")]) == 1
    assert main(["dmesg", "-F", str(log), "-w"]) == 2


def test_runs_write_logs_and_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("perfetto")
    scenario = tmp_path / "s.toml"
    scenario.write_text('until = "1ms"\n[[modules]]\nname = "null"\n')
    log, trace = tmp_path / "{seed}.log", tmp_path / "{seed}.trace"
    assert main(["run", str(scenario), "--seeds", "2", "--log", str(log), "--perfetto", str(trace)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"s.toml", "0.log", "1.log", "0.trace", "1.trace"}
    assert main(["run", str(scenario), "--seeds", "2", "--log", str(tmp_path / "one")]) == 2
    assert "expected {seed} in the name" in capsys.readouterr().err
    assert main(["run", "lfs-gc", "--log", str(log)]) == 2
    assert main(["run", str(scenario), "--log", str(log), "--log-bytes", "5"]) == 2
    assert "at least 65536" in capsys.readouterr().err
