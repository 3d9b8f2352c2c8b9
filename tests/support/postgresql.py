"""A PostgreSQL of one's own, on a free port of this machine, and an Airflow that keeps its data there."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HOW_TO_INSTALL = "needs PostgreSQL's server (Debian: apt-get install postgresql) and the package psycopg2-binary"

_START_LIMIT = 60.0


def server_binaries() -> Path | None:
    """Return the folder with PostgreSQL's ``initdb`` and ``postgres``; ``None`` if there is none."""
    on_path = [Path(found).resolve().parent for name in ("postgres", "pg_ctl") if (found := shutil.which(name))]
    for folder in [*on_path, *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


@contextlib.contextmanager
def postgresql(binaries: Path) -> Iterator[str]:
    """
    Run a server with an empty database.

    :param binaries: the folder with PostgreSQL's programs.
    :return: the database's SQLAlchemy URL.
    """
    with tempfile.TemporaryDirectory(prefix="postgresql-", ignore_cleanup_errors=True) as folder:
        # PostgreSQL refuses to run as root.
        who = _unprivileged() if os.geteuid() == 0 else {}
        if who:
            os.chown(folder, who["user"], who["group"])
        data, port = f"{folder}/data", free_port()
        initdb = [
            binaries / "initdb",
            "--pgdata",
            data,
            "--username",
            "airflow",
            "--auth",
            "trust",
            "--encoding",
            "UTF8",
        ]
        subprocess.run([*initdb, "--locale", "C", "--no-sync"], check=True, cwd=folder, capture_output=True, **who)
        settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off"]
        options = [part for setting in settings for part in ("-c", setting)]
        with Path(folder, "log").open("wb") as log:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", data, *options], cwd=folder, stdout=log, stderr=log, **who
            )
        try:
            _wait_until_ready(server, port, Path(folder, "log"))
            yield f"postgresql+psycopg2://airflow@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(10)
            server.kill()
            server.wait()


def _unprivileged() -> dict[str, Any]:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise LookupError("PostgreSQL does not run as root, and this machine has neither the user postgres nor nobody.")


def free_port() -> int:
    """Return a port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import psycopg2

    give_up = time.monotonic() + _START_LIMIT
    while True:
        try:
            psycopg2.connect(host="127.0.0.1", port=port, user="airflow", dbname="postgres").close()
        except psycopg2.OperationalError:
            if server.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text(errors='replace')}") from None
            time.sleep(0.1)
        else:
            return


class PostgresAirflow(LocalAirflow):
    """A local Airflow with its data in PostgreSQL."""

    def __init__(self, dags_folder: Path, database_url: str, environment: dict[str, str]) -> None:
        self._url = database_url
        super().__init__(dags_folder, {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database_url, **environment})

    def _prepare_database(self) -> None:
        """Do nothing: PostgreSQL needs no settings for several writers."""

    def _query(self, statement: str, *values: Any) -> Sequence[Any]:
        import psycopg2
        import psycopg2.extras

        with contextlib.closing(psycopg2.connect(self._url.replace("+psycopg2", ""))) as connection:
            cursor = connection.cursor(cursor_factory=psycopg2.extras.DictCursor)
            cursor.execute(statement.replace("?", "%s"), values)
            return cursor.fetchall()
