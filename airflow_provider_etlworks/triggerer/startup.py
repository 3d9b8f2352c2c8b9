"""How a trigger begins: not before Airflow is ready for its event, and without an import on the event loop."""

from __future__ import annotations

import asyncio
import importlib
import random
from typing import TYPE_CHECKING

# Not by way of compat.py, which imports operators: this module is imported on the triggerer's event loop.
from airflow.configuration import conf

if TYPE_CHECKING:
    from types import ModuleType

    from airflow.triggers.base import BaseTrigger

# Seconds, whatever the poll_interval.
LONGEST_STARTUP_DELAY = 6.0
SHORTEST_STARTUP_DELAY = 1.0

# Seconds that a scheduler may take to hear from its executor that a task's process has ended.
SCHEDULER_HEARS_WITHIN = 2.0

# Thousands of triggers may begin at once, as when a triggerer starts: their first steps are spread a little.
_SPREAD = 0.1

_LOADED: dict[str, ModuleType] = {}
_LOADING: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Future[ModuleType]] = {}


def startup_delay(trigger: BaseTrigger, poll_interval: float) -> float:
    """
    Return the seconds before which a trigger tells nothing.

    Airflow learns only a while after a task has deferred that its process has ended. An event that overtakes this news
    makes it take the news for the sudden end of the resumed task, and fail it.

    :param trigger: the trigger; only one that a task has deferred to waits for this news.
    :param poll_interval: seconds between two of its looks.
    """
    seconds = max(SHORTEST_STARTUP_DELAY, min(LONGEST_STARTUP_DELAY, poll_interval))
    if trigger.task_instance is not None:
        seconds = max(seconds, _unheard_of_end() + SCHEDULER_HEARS_WITHIN)
    return seconds * (1 + random.uniform(0.0, _SPREAD))  # noqa: S311  # no secret


def _unheard_of_end() -> int:
    """Return the seconds for which the end of a task's process can be missed by the one that supervises it."""
    # Airflow 2 has no such process.
    return conf.getint("workers", "min_heartbeat_interval", fallback=0)


async def import_in_thread(name: str) -> ModuleType:
    """
    Import a module in a thread, once for all that ask for it.

    Airflow imports a trigger's module on its event loop, and Airflow 2 even takes a SIGTERM that arrives meanwhile for
    a failure of the trigger: so that module itself imports next to nothing, and the rest comes by this way.
    """
    if name in _LOADED:
        return _LOADED[name]
    loop = asyncio.get_running_loop()
    key = loop, name
    if key not in _LOADING:
        _LOADING[key] = loop.run_in_executor(None, importlib.import_module, name)
    try:
        # Whoever is cancelled meanwhile must not take the module from the others.
        module = _LOADED[name] = await asyncio.shield(_LOADING[key])
    finally:
        _LOADING.pop(key, None)
    return module
