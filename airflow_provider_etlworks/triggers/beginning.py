"""How a trigger begins: not before Airflow is ready for its event, and without an import on the event loop."""

from __future__ import annotations

import asyncio
import importlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

# Airflow may learn up to five seconds late that the task's process has ended ([workers] min_heartbeat_interval). An
# event before that could overtake it, and Airflow would take the late news for the end of the resumed task.
LONGEST_HEAD_START = 6.0
SHORTEST_HEAD_START = 1.0

# Thousands of triggers may begin at once, as when a triggerer starts: their first steps are spread a little.
_SPREAD = 0.1

_LOADED: dict[str, ModuleType] = {}
_LOADING: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Future[ModuleType]] = {}


def head_start(poll_interval: float) -> float:
    """Return the seconds before which a trigger tells nothing: ``poll_interval`` or a little more, some 6 at most."""
    spread: float = random.uniform(0.0, _SPREAD)  # noqa: S311  # no secret
    return max(SHORTEST_HEAD_START, min(LONGEST_HEAD_START, poll_interval)) * (1 + spread)


async def load(name: str) -> ModuleType:
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
