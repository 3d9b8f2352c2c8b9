"""The stores of Airflow that outlive a try: of a task, of a task in several processes, and of an asset."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class StateStore:
    """
    Airflow's task state store: keeps JSON across the tries of a task.

    :ivar before_the_start: is called once, as soon as a start is noted: after the last look and before the start.
    """

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.before_the_start: Callable[[], object] | None = None

    def get(self, key: str) -> Any:
        return json.loads(self.kept[key]) if key in self.kept else None

    def set(self, key: str, value: Any) -> None:
        self.kept[key] = json.dumps(value)
        todo, self.before_the_start = self.before_the_start, None
        if todo is not None:
            todo()

    def delete(self, key: str) -> None:
        self.kept.pop(key, None)


class FileStore:
    """Airflow's task state store, in a file: it outlives the process."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def _kept(self) -> dict[str, Any]:
        return json.loads(self._path.read_text()) if self._path.exists() else {}

    def get(self, key: str) -> Any:
        return self._kept().get(key)

    def set(self, key: str, value: Any) -> None:
        self._path.write_text(json.dumps({**self._kept(), key: value}))

    def delete(self, key: str) -> None:
        self._path.write_text(json.dumps({name: value for name, value in self._kept().items() if name != key}))


class AssetStateStore:
    """Airflow's store of an asset's state: keeps JSON."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.broken = False
        self.writes = 0

    async def aget(self, key: str) -> Any:
        await asyncio.sleep(0)
        if self.broken:
            raise RuntimeError("the API server is restarting")
        return json.loads(self.kept[key]) if key in self.kept else None

    async def aset(self, key: str, value: Any) -> None:
        await asyncio.sleep(0)
        if self.broken:
            raise RuntimeError("the API server is restarting")
        self.kept[key] = json.dumps(value)
        self.writes += 1

    @property
    def text(self) -> str:
        return "".join(self.kept.values())
