"""A build machine: sources change, are committed with git, compiled with gcc, packaged, and upgraded with dpkg.

Packages hold generated files and are built outside the volume; dpkg installs them into a folder on it, syncing every
file as it always does.  Needs dpkg, git, gcc, make and root (for dpkg).
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import subprocess
import tempfile
from pathlib import Path
from typing import Final

FIELDS: Final = "Architecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: generated\n"
MAKEFILE: Final = """\
OBJECTS := $(patsubst %.c,%.o,$(wildcard unit*.c))
program: $(OBJECTS)
\tgcc -g -o $@ $^
%.o: %.c
\tgcc -g -O1 -c -o $@ $<
"""
QUIET: Final = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Runs a program that must succeed."""
    done = subprocess.run(command, cwd=cwd, env=QUIET, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]}: {done.stdout}{done.stderr}")


class Package:
    """One package, of which every version changes some files."""

    def __init__(self, name: str, draw: random.Random) -> None:
        self.name = name
        self.version = 0
        self.sizes = [min(1 << 20, int(draw.lognormvariate(8.8, 1.4))) + 1 for _ in range(draw.randint(10, 120))]

    def build(self, folder: Path, draw: random.Random, noise: bytes) -> Path:
        """The next version's archive in ``folder``."""
        self.version += 1
        tree = folder / self.name
        (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
        control = f"Package: {self.name}\nVersion: 1.{self.version}\n{FIELDS}"
        (tree / "DEBIAN/control").write_text(control, "utf-8")
        for number, size in enumerate(self.sizes):
            path = tree / f"usr/lib/{self.name}/part{number % 7}/file{number}.dat"
            if path.exists() and draw.random() < 0.5:
                continue
            grown = self.sizes[number] = max(1, int(size * draw.uniform(0.95, 1.06)))
            start = draw.randrange(len(noise) - grown)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(noise[start : start + grown])
        archive = folder / f"{self.name}.deb"
        run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, archive)
        return archive


class Sources:
    """A git repository of C files with a Makefile."""

    def __init__(self, folder: Path, units: int) -> None:
        self.folder = folder
        self.units = units
        folder.mkdir()
        run("git", "init", "-q", cwd=folder)
        for name, value in (("user.name", "nobody"), ("user.email", "nobody@example.org"), ("core.fsync", "all")):
            run("git", "config", name, value, cwd=folder)
        (folder / "Makefile").write_text(MAKEFILE, "utf-8")
        (folder / ".gitignore").write_text("*.o\nprogram\n", "utf-8")
        (folder / "main_unit.h").write_text("#include <stdio.h>\n", "utf-8")

    def edit(self, unit: int, draw: random.Random) -> None:
        """Writes a unit anew."""
        functions = "".join(
            f"int u{unit}_f{i}(int x) {{ for (int i = 0; i < {draw.randrange(9, 999)}; i++) x = x * {i + 3} ^ i;"
            f' if (x < 0) printf("%d", x); return x; }}\n'
            for i in range(draw.randint(5, 25))
        )
        start = "int main(void) { return 0; }\n" if unit == 0 else ""
        text = f'#include "main_unit.h"\n{functions}{start}'
        (self.folder / f"unit{unit:03}.c").write_text(text, "utf-8")

    def commit_and_build(self, message: str) -> None:
        """As a developer would, with what is built made durable."""
        run("git", "add", "--all", cwd=self.folder)
        run("git", "commit", "-q", "--allow-empty", "-m", message, cwd=self.folder)
        run("make", "-s", "-j2", cwd=self.folder)
        run("sync", "--file-system", self.folder)


def main() -> None:
    """Installs everything once, then upgrades, edits, commits and compiles in rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--packages", type=int, default=60)
    parser.add_argument("--units", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=140)
    parser.add_argument("--upgrades", type=int, default=9, help="packages in one round")
    parser.add_argument("--skew", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    noise = draw.randbytes(1 << 22)
    root, admin = Path.cwd() / "root", Path.cwd() / "root/var/lib/dpkg"
    for name in ("info", "updates", "triggers"):
        (admin / name).mkdir(parents=True)
    (admin / "status").touch()
    packages = [Package(f"package{number:03}", draw) for number in range(args.packages)]
    weights = list(itertools.accumulate((rank + 1) ** -args.skew for rank in range(args.packages)))
    sources = Sources(Path.cwd() / "source", args.units)
    for unit in range(args.units):
        sources.edit(unit, draw)
    with tempfile.TemporaryDirectory(prefix="packages-") as elsewhere:
        for number in range(-1, args.rounds):
            chosen = range(args.packages) if number < 0 else draw.choices(range(args.packages), cum_weights=weights,
                                                                          k=args.upgrades)  # fmt: skip
            archives = [packages[i].build(Path(elsewhere), draw, noise) for i in sorted(set(chosen))]
            run("dpkg", f"--root={root}", f"--admindir={admin}", "--log=/dev/null", "--install", *archives)
            for unit in draw.sample(range(args.units), 3):
                sources.edit(unit, draw)
            sources.commit_and_build(f"round {number}")


if __name__ == "__main__":
    main()
