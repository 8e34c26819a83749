"""A PostgreSQL server of the test's own, on loopback: with SQLite, Airflow runs one scheduler only."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def binaries() -> Path | None:
    """The folder of initdb and pg_ctl; Debian keeps them off the path."""
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), *map(Path, os.get_exec_path())]
    return next((folder for folder in found if (folder / "initdb").exists()), None)


@contextmanager
def postgres(port: int) -> Iterator[str]:
    """A running server with an empty database `airflow`; its SQLAlchemy URL."""
    folder = binaries()
    assert folder is not None, "PostgreSQL is not installed"
    home = Path(tempfile.mkdtemp(prefix="relex-postgres-"))  # a socket's path must be short
    as_user: list[str] = []
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        shutil.chown(home, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def run(*command: str | Path) -> None:
        subprocess.run([*as_user, *map(str, command)], check=True, stdout=subprocess.DEVNULL, cwd=home)

    data = home / "data"
    run(folder / "initdb", "-D", data, "--auth=trust", "-U", "postgres", "-E", "UTF8")
    server = (folder / "pg_ctl", "-D", data, "-w", "-l", home / "log")
    run(*server, "-o", f"-k {home} -h 127.0.0.1 -p {port}", "start")
    try:
        run(folder / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "airflow")
        yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/airflow"
    finally:
        run(*server, "-m", "immediate", "stop")
        shutil.rmtree(home, ignore_errors=True)
