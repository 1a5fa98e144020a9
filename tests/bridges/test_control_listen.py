"""The socket file: its mode from the first instant, stale and live ones, and what is not ours."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from uxk.bridges import control_listen
from uxk.bridges.control_listen import listen, remove
from uxk.errors import UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "k.sock"


def only(path: Path) -> bool:
    """Nothing else was left in the directory."""
    return [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_mode_is_0600_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        sock, identity = listen(path)
    finally:
        os.umask(before)
    with sock:
        found = path.lstat()
        assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
        assert (found.st_dev, found.st_ino) == identity
        assert only(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    remove(path, identity)
    assert not path.exists()
    remove(path, identity)


def test_the_name_appears_only_when_it_listens(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link
    seen: list[int] = []

    def spy(source: Path, target: Path) -> None:
        assert not target.exists()
        assert stat.S_IMODE(source.parent.stat().st_mode) == 0o700
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(source))
        seen.append(stat.S_IMODE(source.lstat().st_mode))
        link(source, target)

    monkeypatch.setattr(os, "link", spy)
    sock, _ = listen(path)
    sock.close()
    assert seen == [0o600]


def test_a_stale_socket_is_replaced(path: Path) -> None:
    sock, old = listen(path)
    sock.close()
    assert path.exists()
    sock, new = listen(path)
    with sock:
        assert only(path)
        remove(path, old) if old != new else None
        assert path.exists()


def test_a_live_socket_is_left_alone(path: Path) -> None:
    sock, identity = listen(path)
    with sock:
        with pytest.raises(UsageError, match="listens there already") as refused:
            listen(path)
        assert refused.value.errno == errno.EADDRINUSE
        found = path.lstat()
        assert (found.st_dev, found.st_ino) == identity and only(path)


def test_a_live_socket_with_a_full_backlog_is_not_stale(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_listen, "BACKLOG", 0)
    sock, _ = listen(path)
    with sock, socket.socket(socket.AF_UNIX) as first:
        first.connect(str(path))
        with pytest.raises(UsageError) as refused:
            listen(path)
        assert refused.value.errno == errno.EADDRINUSE


def test_one_that_came_just_now_is_put_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listen(path)[0].close()
    answers = control_listen._answers
    rivals: list[socket.socket] = []

    def interfere(asked: Path) -> bool:
        stale = not answers(asked)
        if stale and not rivals:
            path.unlink()
            keep.append(os.open(path.parent, os.O_RDONLY))  # so that no inode is used again
            rivals.append(listen(path)[0])
        return not stale

    keep: list[int] = []
    hold = path.with_name("hold")
    os.link(path, hold)  # the stale inode stays taken
    monkeypatch.setattr(control_listen, "_answers", interfere)
    with pytest.raises(UsageError) as refused:
        listen(path)
    assert refused.value.errno == errno.EADDRINUSE
    with rivals[0], socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    os.close(keep[0])


def test_what_is_no_socket_stays(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(UsageError, match="no socket") as refused:
        listen(path)
    assert refused.value.errno == errno.EEXIST and path.read_text() == "precious" and only(path)


def test_a_dangling_link_stays(path: Path) -> None:
    path.symlink_to("nowhere")
    with pytest.raises(UsageError) as refused:
        listen(path)
    assert refused.value.errno == errno.EEXIST and path.is_symlink()


def test_impossible_places(tmp_path: Path) -> None:
    for bad, number in ((tmp_path / "absent" / "k", errno.ENOENT), (tmp_path / ("x" * 120), errno.ENAMETOOLONG)):
        with pytest.raises(UsageError) as refused:
            listen(bad)
        assert refused.value.errno == number
    assert list(tmp_path.iterdir()) == []
