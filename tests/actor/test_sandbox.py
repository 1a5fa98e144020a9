"""What a process may still do behind its sandbox, and what the sandbox is where packages are missing.

tests/kernel/test_isolation.py has what it keeps an extension from.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from uxk.actor import sandbox
from uxk.uapi.manifest import Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are confined on Linux only")
HERE = sandbox.available()
filters = pytest.mark.skipif(not all(HERE.values()), reason=f"needs uxk[sandbox] and Linux 6.12: {HERE}")

PROLOGUE = """
import errno, json, os, socket, subprocess, sys
for name in {missing}:
    sys.modules[name] = None
from uxk.actor import sandbox
from uxk.uapi.manifest import Sandbox
import msgspec
said = {{"measures": sandbox.enter(msgspec.json.decode({terms!r}, type=Sandbox), 1 << 20, sys.path)}}

def tried(name, what):
    try:
        what()
        said[name] = ""
    except OSError as exc:
        said[name] = errno.errorcode[exc.errno]

def read(path):
    return lambda: open(path).read(1)

def write(path):
    return lambda: open(path, "w").write("x")
"""


def confined(terms: Sandbox, body: str, *missing: str) -> dict[str, Any]:
    """What a process says that has entered a sandbox and then run ``body``."""
    code = PROLOGUE.format(missing=missing, terms=msgspec.json.encode(terms)) + body + "\nprint(json.dumps(said))"
    path = filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")])
    environment = sandbox.environment(os.environ) | {"PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@filters
def test_files_are_there_as_far_as_the_manifest_says(tmp_path: Path) -> None:
    for name in ("in", "out", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    terms = Sandbox(read=(str(tmp_path / "in"), "/nowhere"), write=(str(tmp_path / "out"),))
    said = confined(terms, f"""
for folder in ("in", "out", "other"):
    tried(f"read {{folder}}", read(f"{tmp_path}/{{folder}}/file"))
    tried(f"write {{folder}}", write(f"{tmp_path}/{{folder}}/file"))
    tried(f"make {{folder}}", write(f"{tmp_path}/{{folder}}/new"))
    tried(f"remove {{folder}}", lambda: os.unlink(f"{tmp_path}/{{folder}}/file"))
tried("chmod out", lambda: os.chmod("{tmp_path}/out/new", 0o600))
""")  # fmt: skip
    said.pop("measures")
    allowed = {"read in", "read out", "write out", "make out", "remove out", "chmod out"}
    assert {what for what, how in said.items() if not how} == allowed
    assert {how for how in said.values() if how} == {"EACCES"}


@filters
def test_one_file_may_be_written_and_not_its_neighbours(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(4096))
    said = confined(Sandbox(write=(str(disk),)), f"""
tried("disk", lambda: open({str(disk)!r}, "r+b").write(b"data"))
tried("beside", write({str(tmp_path / "beside")!r}))
""")  # fmt: skip
    assert (said["disk"], said["beside"]) == ("", "EACCES")
    assert disk.read_bytes()[:4] == b"data"


@filters
def test_an_export_has_sockets_and_still_no_programs() -> None:
    said = confined(Sandbox(network=True), """
def talk():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        other, _ = server.accept()
        other.sendall(b"x")
        assert client.recv(1) == b"x"
        other.close()
tried("tcp", talk)
tried("udp", lambda: socket.socket(type=socket.SOCK_DGRAM).close())
tried("packet", lambda: socket.socket(socket.AF_PACKET).close())
tried("program", lambda: subprocess.run(["/bin/true"]))
tried("kill", lambda: os.kill(os.getppid(), 9))
tried("names", read("/etc/hosts"))
tried("users", read("/etc/passwd"))
""")  # fmt: skip
    said.pop("measures")
    assert said == {
        "tcp": "", "udp": "", "packet": "EPERM", "program": "EPERM", "kill": "EPERM", "names": "", "users": "EACCES"
    }  # fmt: skip


@filters
def test_programs_are_for_who_asks_and_are_confined_as_well() -> None:
    said = confined(Sandbox(processes=True), """
tried("program", lambda: subprocess.run(["/bin/true"], check=True))
said["cat"] = subprocess.run(["/bin/cat", "/etc/passwd"], stderr=subprocess.DEVNULL).returncode
tried("kill", lambda: os.kill(os.getppid(), 9))
tried("socket", lambda: socket.socket())
""")  # fmt: skip
    said.pop("measures")
    assert said == {"program": "", "cat": 1, "kill": "EPERM", "socket": "EPERM"}


@pytest.mark.parametrize(
    ("missing", "kept"),
    [((), ["landlock", "seccomp"]), (("landlockpy",), ["seccomp"]), (("seccompy",), ["landlock"]),
     (("landlockpy", "seccompy"), [])],
)  # fmt: skip
@filters
def test_what_is_missing_is_said_and_the_rest_holds(missing: tuple[str, ...], kept: list[str]) -> None:
    said = confined(Sandbox(), """
tried("fork", lambda: os.waitpid(os.fork() or os._exit(0), 0))
tried("file", read("/etc/passwd"))
tried("grow", lambda: os.write(os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR), b"x"))
""", *missing)  # fmt: skip
    measures = said["measures"]
    assert measures[:2] == ["rlimits", "no_new_privs"]
    assert [each.split()[0] for each in measures if each.split()[0] in ("landlock", "seccomp")] == kept
    assert (said["fork"] == "EPERM") == ("seccomp" in kept)
    assert (said["file"] == "EACCES") == ("landlock" in kept)
    assert said["grow"] in ("EFBIG", "EACCES", "EPERM", "EOPNOTSUPP")


@filters
def test_compiled_code_is_taken_from_where_it_lies_and_never_written() -> None:
    pytest.importorskip("numba")
    said = confined(Sandbox(), """
from uxk.subsystems.lfs.fast.jit import jit
import uxk.subsystems.lfs.miniature
said["sum"] = jit(lambda a, b: a + b)(2, 3)
""")  # fmt: skip
    assert said["sum"] == 5


def test_a_process_hears_nothing_of_its_kernels_secrets_and_computes_alone() -> None:
    given = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "PYTHONHASHSEED": "0", "LC_ALL": "C", "OMP_NUM_THREADS": "8"}
    seen = sandbox.environment(given)
    assert {name: seen[name] for name in ("PATH", "PYTHONHASHSEED", "LC_ALL")} == {
        "PATH": "/bin", "PYTHONHASHSEED": "0", "LC_ALL": "C"
    }  # fmt: skip
    assert "AWS_SECRET_ACCESS_KEY" not in seen
    assert seen["OMP_NUM_THREADS"] == seen["OPENBLAS_NUM_THREADS"] == "1"
