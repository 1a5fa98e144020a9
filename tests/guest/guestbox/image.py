"""Debian's kernel package, unpacked but never installed, and an initramfs of this machine's own programs.

``python3 tests/guest/guestbox/image.py`` puts the package into the cache, ``$UXK_GUEST_CACHE`` or
``~/.cache/uxk-guest``, unless one is there; with ``--newest``, the current one.  The tests only look for it there.
Needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

META_PACKAGE = "linux-image-amd64"
PROGRAMS = (
    "dash", "nvme", "fio", "modprobe", "mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_repair", "blkdiscard", "blockdev",
    "flock", "mount", "umount",
)  # fmt: skip
"""Of this machine, with the libraries that ldd names; everything else in the guest is busybox."""
MODULES = (
    "virtio_pci", "virtio_net", "virtio_blk", "nvme_tcp", "nvmet_tcp", "ext4", "xfs", "crc32c_intel", "crc32c_generic",
    "libcrc32c", "crct10dif_pclmul",
)  # fmt: skip
INIT = Path(__file__).with_name("init.sh")
_SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin", "/bin"])


class NotHere(Exception):
    """This machine lacks something; the message says what, and how to get it."""


def cache() -> Path:
    """The folder that survives runs, outside the tree."""
    return Path(os.environ.get("UXK_GUEST_CACHE") or Path.home() / ".cache" / "uxk-guest")


def program(name: str) -> Path:
    """Where a program is.  Raises NotHere."""
    found = shutil.which(name, path=_SEARCH)
    if found is None:
        raise NotHere(f"{name} is not installed; `.ci/run` lists what the guest needs")
    return Path(found)


# --- the kernel ---------------------------------------------------------------------------------------


def fetch() -> Path:
    """Downloads and unpacks the kernel package that is current; returns its folder.  Raises NotHere."""
    depends = subprocess.run(["apt-cache", "depends", META_PACKAGE], capture_output=True, text=True).stdout
    names = re.findall(r"Depends: (linux-image-\d\S+)", depends)
    if not names:
        raise NotHere(f"apt knows no package that {META_PACKAGE} depends on; try `apt-get update`")
    target = cache() / names[0]
    if target.is_dir():
        return target
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        # Its own user may not write here.
        subprocess.run(
            ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", names[0]], cwd=folder, check=True
        )
        (package,) = Path(folder).glob("*.deb")
        unpacked = Path(folder, "unpacked")
        subprocess.run(["dpkg", "-x", package, unpacked], check=True)
        subprocess.run([program("depmod"), "-b", unpacked, names[0].removeprefix("linux-image-")], check=True)
        unpacked.rename(target)
    return target


def kernel() -> tuple[Path, Path]:
    """(bzImage, folder with the modules) of the newest package in the cache.  Raises NotHere."""

    def number(path: Path) -> list[int]:
        return [int(digits) for digits in re.findall(r"\d+", path.name)]

    for folder in sorted(cache().glob("linux-image-*"), key=number, reverse=True):
        version = folder.name.removeprefix("linux-image-")
        image, modules = folder / "boot" / f"vmlinuz-{version}", folder / "lib" / "modules" / version
        if image.is_file() and (modules / "modules.dep").is_file():
            return image, modules
    raise NotHere(f"no kernel package in {cache()}; get it with `python3 {Path(__file__)}`")


# --- the initramfs ------------------------------------------------------------------------------------


def initramfs() -> Path:
    """An archive with what the guest needs; made anew when one of its files has changed.  Raises NotHere."""
    files = dict(sorted(_contents(kernel()[1])))
    key = hashlib.sha256(INIT.read_bytes())
    for name, source in files.items():
        status = source.stat()
        key.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    archive = cache() / f"initramfs-{key.hexdigest()[:16]}.cpio"
    with _locked(cache() / "lock"):
        if not archive.exists():
            for old in cache().glob("initramfs-*.cpio"):
                old.unlink()
            unfinished = archive.with_suffix(".new")
            with unfinished.open("wb") as out:
                _write_newc(out, files)
            unfinished.rename(archive)
    return archive


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _contents(modules: Path) -> Iterator[tuple[str, Path]]:
    """(path in the guest, path here) of every file."""
    yield "init", INIT
    yield "bin/busybox", _static_busybox()
    for name in PROGRAMS:
        path = program(name)
        yield f"bin/{name}", path.resolve()
        yield from ((library.lstrip("/"), Path(library)) for library in _libraries(path))
    config = Path("/etc/mke2fs.conf")
    if config.exists():
        yield "etc/mke2fs.conf", config
    home = f"lib/modules/{modules.name}"
    yield from ((f"{home}/{path.name}", path) for path in modules.glob("modules.*"))
    for name in _closure(modules / "modules.dep", MODULES):
        yield f"{home}/{name}", modules / name


def _static_busybox() -> Path:
    path = program("busybox")
    if _libraries(path):
        raise NotHere(f"{path} needs libraries: install busybox-static")
    return path


def _libraries(path: Path) -> list[str]:
    """Full paths, as the dynamic linker will look for them, itself included."""
    listing = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    return re.findall(r"(?:=> )?(/\S+) \(0x", listing)


def _closure(dependencies: Path, wanted: Iterable[str]) -> set[str]:
    """Files of modules, and of those they need (modules.dep already has the whole closure on each line)."""
    needs = {}
    for line in dependencies.read_text().splitlines():
        file, _, others = line.partition(":")
        needs[Path(file).name.removesuffix(".ko").replace("-", "_")] = {file, *others.split()}
    return {file for name in wanted for file in needs.get(name, ())}


def _write_newc(out: BinaryIO, files: dict[str, Path]) -> None:
    """The kernel's initramfs format (Documentation/driver-api/early-userspace/buffer-format.rst), uncompressed."""
    folders = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
    for inode, name in enumerate(folders, 1):
        _entry(out, inode, name, stat.S_IFDIR | 0o755, b"")
    for inode, (name, source) in enumerate(files.items(), len(folders) + 1):
        _entry(out, inode, name, stat.S_IFREG | 0o755, source.read_bytes())
    _entry(out, 0, "TRAILER!!!", 0, b"")


def _entry(out: BinaryIO, inode: int, name: str, mode: int, data: bytes) -> None:
    path = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    out.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))


def main() -> None:
    """Prints where the kernel is, after a download if there is none; exits with a message that says why not."""
    try:
        if "--newest" not in sys.argv[1:]:
            with contextlib.suppress(NotHere):
                print(kernel()[0])
                return
        print(fetch())
    except (NotHere, OSError, subprocess.CalledProcessError) as exc:
        sys.exit(f"{Path(__file__).name}: {exc}")


if __name__ == "__main__":
    main()
