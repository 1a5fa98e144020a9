"""A log as files: what is shown is what is in the log, nothing else, and nobody writes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Awaitable
from pathlib import Path

import pytest

import uxk
from uxk.bridges.datalog import face as module
from uxk.bridges.datalog.face import DatasetsFace, with_datasets
from uxk.bridges.datalog.format import Description, file_name
from uxk.bridges.datalog.writer import LogWriter, Origin, Publication
from uxk.bridges.face.api import POLLIN, POLLOUT
from uxk.bridges.face.memory import MemoryFace
from uxk.errors import TreeError

SCHEMA = (("x", "<u2"), ("name", "|S2"))


@pytest.fixture(autouse=True)
def always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH_NS", 0)


def write(log: LogWriter, generation: int, rows: int, dataset: str = "d", model: str = "m") -> None:
    data = b"".join(number.to_bytes(2, "little") + b"ab" for number in range(rows))
    log.write([Publication(Description("s", model, dataset, SCHEMA, 9), 4, 1, generation, 0, data)])


async def refused(number: int, call: Awaitable[object]) -> None:
    with pytest.raises(TreeError) as caught:
        await call
    assert caught.value.errno == number, caught.value


async def test_segments_columns_and_the_newest_rows(tmp_path: Path) -> None:
    face = DatasetsFace(tmp_path / "log")
    assert await face.scan("/") == {}
    with LogWriter(tmp_path / "log", Origin(0, "virtual")) as log:
        write(log, 1, 3)
        assert sorted(await face.scan("/")) == [file_name(1), "m"]
        write(log, 2, 2)
        assert await face.read("/m/d/columns") == b"x <u2\nname |S2\n"
        rows = (await face.read_text("/m/d/newest.jsonl")).splitlines()
        assert [json.loads(row) for row in rows] == [{"x": 0, "name": "ab"}, {"x": 1, "name": "ab"}]
    stat = await face.stat(f"/{file_name(1)}")
    path = tmp_path / "log" / file_name(1)
    assert (stat.kind, stat.mode, stat.stored, stat.size_bytes) == ("file", 0o444, True, path.stat().st_size)
    copy = tmp_path / "copy"
    copy.mkdir()
    data = b""
    async with await face.open(f"/{file_name(1)}") as file:
        while part := await file.read(100):
            data += part
        assert await file.poll(POLLIN | POLLOUT) == POLLIN
    (copy / file_name(1)).write_bytes(data)
    assert [each.generation for each in uxk.DataLog(copy).generations()] == [1, 2]
    assert await face.read_at(f"/{file_name(1)}", 4, 9) == path.read_bytes()[4:13]
    for name, each in (await face.scan("/m/d")).items():
        assert each == await face.stat(f"/m/d/{name}")
        assert each.size_bytes == len(await face.read(f"/m/d/{name}"))


async def test_nothing_else_is_there_and_nobody_writes(tmp_path: Path) -> None:
    with LogWriter(tmp_path, Origin(0, "virtual")) as log:
        write(log, 1, 1)
        for model, dataset in (("..", "d"), ("a/b", "d"), ("ok", "x\n"), ("m", "..")):
            write(log, 1, 1, dataset, model)
    (tmp_path / "secret").write_text("x")
    os.symlink("secret", tmp_path / file_name(7))
    face = DatasetsFace(tmp_path)
    assert [path for path, _ in await face.walk()] == [
        f"/{file_name(1)}", "/m", "/m/d", "/m/d/columns", "/m/d/newest.jsonl"
    ]  # fmt: skip
    for path in ("/secret", "/lock", f"/{file_name(7)}", "/m/e", "/m/../secret"):
        await refused(errno.EINVAL if ".." in path else errno.ENOENT, face.stat(path))
    await refused(errno.ENOTDIR, face.scan("/m/d/columns"))
    await refused(errno.ENOTDIR, face.stat("/m/d/columns/x"))
    await refused(errno.EISDIR, face.read("/m/d"))
    await refused(errno.EACCES, face.write("/m/d/columns", b"x"))
    await refused(errno.EROFS, face.open("/m/d/columns", "rw"))
    await refused(errno.EINVAL, face.read_at("/m/d/columns", -1, 5))
    file = await face.open("/m/d/columns")
    await refused(errno.EROFS, file.write(b"x"))
    await file.aclose()
    await file.aclose()
    await refused(errno.EBADF, file.read())


async def test_a_damaged_log_shows_what_is_whole(tmp_path: Path) -> None:
    with LogWriter(tmp_path, Origin(0, "virtual")) as log:
        write(log, 1, 1)
        write(log, 2, 3)
    path = tmp_path / file_name(1)
    path.write_bytes(path.read_bytes()[:-60])
    assert len((await DatasetsFace(tmp_path).read("/m/d/newest.jsonl")).splitlines()) == 1
    path.write_bytes(b"rubbish")
    assert list(await DatasetsFace(tmp_path).scan("/")) == [file_name(1)]


async def test_grafted_beside_a_kernel(tmp_path: Path) -> None:
    kernel = uxk.Kernel()
    with uxk.DataLogRecorder(kernel, uxk.DataLogSettings(dir=str(tmp_path))) as log:
        async with kernel:
            data = kernel.create_model("demo", "m0").dataset("d", [("x", "<u4")], 4)
            data.append([(7,)])
            data.publish()
            face = await with_datasets(MemoryFace(kernel))
            log.close()
            assert "datasets" in await face.listdir("/")
            assert await face.read("/datasets/m0/d/newest.jsonl") == b'{"x":7}\n'
            assert "datasets" not in await (await with_datasets(MemoryFace(kernel))).listdir("/")
