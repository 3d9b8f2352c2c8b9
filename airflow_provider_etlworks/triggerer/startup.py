"""How a trigger starts: not before Airflow is ready for its event, and without an import on the event loop."""

from __future__ import annotations

import asyncio
import importlib
import random
from typing import TYPE_CHECKING

# Not through compat.py, which imports operators: this module is imported on the triggerer's event loop.
from airflow.configuration import conf

if TYPE_CHECKING:
    from types import ModuleType

# Seconds, whatever the poll_interval.
LONGEST_STARTUP_DELAY = 6.0
SHORTEST_STARTUP_DELAY = 1.0

# Seconds until a scheduler has surely seen that a task's process has ended.
SCHEDULER_NOTICES_WITHIN = 2.0

# Thousands of triggers may start at once, such as when a triggerer starts. Their first polls are spread by this part of
# the delay, so that those that become due while the event loop is held do not hold it for long themselves.
_SPREAD = 0.25

_LOADED: dict[str, ModuleType] = {}
_LOADING: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Future[ModuleType]] = {}


def startup_delay(poll_interval: float, *, for_task: bool) -> float:
    """
    Return the seconds that a trigger waits before it yields its first event.

    If the trigger fires before the scheduler has seen the deferred process exit, Airflow takes that exit for a crash of
    the resumed task, and fails it.

    :param poll_interval: seconds between two polls of the trigger.
    :param for_task: whether a task has deferred to the trigger: only then does it wait for the scheduler.
    """
    seconds = max(SHORTEST_STARTUP_DELAY, min(LONGEST_STARTUP_DELAY, poll_interval))
    if for_task:
        # The supervisor of a task's process may notice its end that much later. Airflow 2 has no supervisor.
        unnoticed = conf.getint("workers", "min_heartbeat_interval", fallback=0)
        seconds = max(seconds, unnoticed + SCHEDULER_NOTICES_WITHIN)
    return seconds * (1 + random.uniform(0.0, _SPREAD))  # noqa: S311  # not a secret


async def import_in_thread(name: str) -> ModuleType:
    """
    Import a module in a thread, once for all callers.

    Airflow imports a trigger's module on its event loop, and Airflow 2 treats a SIGTERM that arrives meanwhile as a
    failure of the trigger. So that module imports next to nothing, and loads the rest with this function.

    :param name: the module's full name.
    """
    if name in _LOADED:
        return _LOADED[name]
    loop = asyncio.get_running_loop()
    key = loop, name
    if key not in _LOADING:
        _LOADING[key] = loop.run_in_executor(None, importlib.import_module, name)
    try:
        # A caller that is cancelled meanwhile must not cancel the import for the others.
        module = _LOADED[name] = await asyncio.shield(_LOADING[key])
    finally:
        _LOADING.pop(key, None)
    return module
