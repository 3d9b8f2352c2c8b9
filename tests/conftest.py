"""What every test has: an Airflow home of its own, and nothing of the machine's settings."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from support.client import DRIVES, Drive, whole_text_of
from support.clock import VirtualClock
from support.effort import look_longer
from xdist.scheduler import LoadScopeScheduling

from airflow_provider_etlworks.client.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_AIRFLOW_HOME = tempfile.TemporaryDirectory(prefix="airflow-home-")

# Before anything imports Airflow, which reads its settings once.
for _name in list(os.environ):
    if _name.startswith("AIRFLOW") or _name.lower() in {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}:
        del os.environ[_name]
os.environ["AIRFLOW_HOME"] = _AIRFLOW_HOME.name

# Without bytecode, Airflow takes twice as long to import, and the tests start hundreds of processes that import it. So
# somebody who wants none in this checkout gets it elsewhere. The processes of pytest-xdist inherit the folder.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    _BYTECODE = tempfile.TemporaryDirectory(prefix="bytecode-")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = _BYTECODE.name
    sys.dont_write_bytecode = False

# A shell that runs the tests in the background has them, and the processes they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


# The tests of these folders take many minutes or need more than Python, so they run only when they are asked for. Each
# has the marker of its folder's name.
_ONLY_ON_REQUEST = ("browser", "deployment")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    folders = " and ".join(f"tests/{folder}" for folder in _ONLY_ON_REQUEST)
    parser.addoption(
        "--all",
        action="store_true",
        help=f"also run {folders}, as naming such a folder does, and long fuzzing",
    )
    parser.addoption("--save-pictures", action="store_true", help="let tests/browser write docs/images")


def pytest_configure(config: pytest.Config) -> None:
    """Before the tests are imported, which is when they choose how many cases they make up."""
    if config.getoption("--all"):
        look_longer()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what runs only on request, and leave it out if nobody has asked for it."""
    left_out = []
    for item in items:
        if config.getoption("--all") and item.get_closest_marker("fuzzing"):
            item.add_marker(pytest.mark.timeout(1800))
        folder = item.path.parent.name
        if folder in _ONLY_ON_REQUEST:
            item.add_marker(folder)
            if not (config.getoption("--all") or any(f"tests/{folder}" in argument for argument in config.args)):
                left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


_SHARE_AN_AIRFLOW = ("tests/airflow/", "tests/browser/", "tests/deployment/")
_START_THEIR_OWN = ("tests/airflow/test_demo.py", "tests/airflow/test_postgresql.py")


class _OneAirflow(LoadScopeScheduling):
    """Lets one process run all tests that share the real Airflow, while others run the rest, one by one."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(_START_THEIR_OWN):
            return nodeid.partition("::")[0]
        return "airflow" if nodeid.startswith(_SHARE_AN_AIRFLOW) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Tell pytest-xdist who runs which test. Its own groups have no effect with pytest 9."""
    return _OneAirflow(config, log)


@pytest.fixture(params=["requests", "aiohttp"])
def connect(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Drive]]:
    """
    Make clients of Etlworks: each test that asks for this runs over both transports.

    ``connect(url, **settings)`` gives a ``Drive``. At the end, no secret may be found in what they logged and raised.
    """
    caplog.set_level(logging.DEBUG)
    drives: list[Drive] = []

    def make(url: str, *, clock: VirtualClock | None = None, **settings: Any) -> Drive:
        chosen = {"password": "sandbox-key", "requests_per_minute": 0, **settings}
        drive = DRIVES[request.param](ClientSettings(root_url=url, **chosen), clock or VirtualClock())
        drives.append(drive)
        return drive

    yield make
    seen = [record.getMessage() for record in caplog.get_records("call")]
    for drive in drives:
        drive.close()
        seen += [whole_text_of(error) for error in drive.errors] + [repr(drive.settings)]
        # "sandbox", the sandbox's own password, is also a word that test code is full of.
        secrets = {secret for secret in drive.settings.secrets if secret != "sandbox"} | {"eyJ"}
        assert [text for text in seen if any(secret in text for secret in secrets)] == []


@pytest.fixture
def closed_port() -> int:
    """Return a port of this machine on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
