"""PostgreSQL under pgbench's TPC-B-like transactions, several clients, durable commits.

Needs the server's programs (Debian: ``postgresql``) and, as they refuse to be run by root, a user of the system to
run them as.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

SETTINGS: Final = {
    "listen_addresses": "", "shared_buffers": "32MB", "max_wal_size": "96MB", "min_wal_size": "32MB",
    "checkpoint_timeout": "30s", "autovacuum_naptime": "5s", "bgwriter_delay": "50ms", "logging_collector": "off",
}  # fmt: skip


def programs() -> Path:
    """The newest server's folder of programs."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not versions:
        raise SystemExit("initdb: not found; install PostgreSQL's server")
    return versions[-1].parent


def main() -> None:
    """Makes a cluster in the current folder, fills it, runs the transactions and stops it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--scale", type=int, default=12, help="100,000 accounts each")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--transactions", type=int, default=25_000, help="of each client")
    parser.add_argument("--user", default="postgres", help="who runs it, if root calls")
    args = parser.parse_args()
    folder = Path.cwd() / "pg"
    folder.mkdir()
    become: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, args.user)
        become = ["setpriv", "--reuid", args.user, "--regid", args.user, "--clear-groups", "--"]
    here = {**os.environ, "PGHOST": str(folder), "PGUSER": "bench", "PGDATABASE": "postgres"}

    def run(program: str, *words: str) -> None:
        subprocess.run([*become, str(programs() / program), *words], check=True, cwd=folder, env=here)

    data = str(folder / "data")
    run("initdb", "--username", "bench", "--auth", "trust", "--pgdata", data, "--no-locale", "--encoding", "UTF8")
    options = " ".join(f"-c {name}={value!r}" for name, value in SETTINGS.items())
    run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", f"{options} -k {folder}", "start")
    try:
        run("pgbench", "-i", "--quiet", "-s", str(args.scale))
        run("pgbench", "-c", str(args.clients), "-j", "2", "-t", str(args.transactions))
    finally:
        run("pg_ctl", "-D", data, "-w", "-m", "fast", "stop")


if __name__ == "__main__":
    main()
