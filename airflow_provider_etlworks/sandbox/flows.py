"""The flows of a sandbox: their fields, and the behaviour of their runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

ENDINGS = ("success", "warning", "error", "canceled")
FOREVER = float("inf")
BUILT_IN = Path(__file__).with_name("flows.yaml")

_SECONDS = ("queued", "running", "visible_after")
_TEXTS = ("name", "description", "flow_type", "owner")
_OPTIONAL_TEXTS = ("exception", "listener", "schedule")
_LISTS = ("tags", "log", "connections", "listener_methods")
_METHODS = ("GET", "POST", "PUT", "DELETE")
_DOCUMENTED = ("id", "name", "description", "flow_type", "tags", "connections", "schedule")


@dataclass(frozen=True)
class SandboxFlow:
    """
    A flow, and how each of its runs behaves: all in the same way.

    :param id: The flow's number, 1 or more.
    :param name: The flow's name, unique among the flows.
    :param description: A description for people.
    :param flow_type: Etlworks's own type string.
    :param tags: Its tags.
    :param queued: Seconds a run stays ``queued`` before it is ``running``. Default 0.
    :param running: Seconds a run stays ``running``. Default 0. ``float("inf")`` or ``"forever"``: until it is stopped.
    :param ends: The status a run ends with: ``success``, ``warning``, ``error`` or ``canceled``.
    :param records: The number of records that a run processes.
    :param log: Lines of a run's log, spread evenly over the time it runs.
    :param exception: The error text of a run that ended in ``error``.
    :param visible_after: Seconds after the start during which a run's record answers 404. Default 0.
    :param streaming: A streaming flow ends as ``success`` when it is stopped, any other as ``error``.
    :param owner: The user who created it.
    :param listener: Path below ``httplistener/`` where a request starts a run.
    :param listener_methods: The methods of such a request. Default ``POST``.
    :param listener_auth: How such a request is authenticated: ``jwt`` or ``basic``.
    :param receipt: The id in its answer: ``messageUuid``, ``auditId``, or ``none`` for one of the flow author's own.
    :param schedule: Cron expression of its schedule. It starts nothing by itself: see ``Sandbox.run_by_schedule``.
    :param connections: Names of the connections it uses.
    :raises ValueError: a value is invalid; the message begins with the field's name.
    """

    id: int
    name: str
    description: str = ""
    flow_type: str = "ETL.database.event"
    tags: tuple[str, ...] = ()
    queued: float = 0.0
    running: float = 0.0
    ends: str = "success"
    records: int = 0
    log: tuple[str, ...] = ()
    exception: str | None = None
    visible_after: float = 0.0
    streaming: bool = False
    owner: str = "alice@example.com"
    listener: str | None = None
    listener_methods: tuple[str, ...] = ("POST",)
    listener_auth: str = "jwt"
    receipt: str = "messageUuid"
    schedule: str | None = None
    connections: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require("id", self.id, "a whole number above 0", _is_whole(self.id) and self.id > 0)
        for name in _TEXTS:
            _require(name, getattr(self, name), "text", isinstance(getattr(self, name), str))
        _require("name", self.name, "text that is not empty", bool(self.name.strip()))
        for name in _OPTIONAL_TEXTS:
            value = getattr(self, name)
            _require(name, value, "text", value is None or isinstance(value, str))
        for name in _LISTS:
            object.__setattr__(self, name, _string_tuple(name, getattr(self, name)))
        for name in _SECONDS:
            object.__setattr__(self, name, _seconds(name, getattr(self, name)))
        _require("ends", self.ends, f"one of {', '.join(ENDINGS)}", self.ends in ENDINGS)
        methods, auth, receipts = self.listener_methods, ("jwt", "basic"), ("messageUuid", "auditId", "none")
        _require("listener_methods", methods, f"some of {', '.join(_METHODS)}", set(methods) <= set(_METHODS))
        _require("listener_auth", self.listener_auth, "jwt or basic", self.listener_auth in auth)
        _require("receipt", self.receipt, f"one of {', '.join(receipts)}", self.receipt in receipts)
        _require("records", self.records, "a whole number, 0 or more", _is_whole(self.records) and self.records >= 0)
        _require("streaming", self.streaming, "true or false", isinstance(self.streaming, bool))


def flow_from_mapping(mapping: Mapping[str, Any]) -> SandboxFlow:
    """
    Read a flow from a mapping of plain values, as YAML and JSON give them.

    :raises ValueError: a field is unknown, missing or invalid; the message names it.
    """
    known = [field.name for field in fields(SandboxFlow)]
    unknown = [name for name in mapping if name not in known]
    if unknown:
        raise ValueError(f"{unknown[0]}: unknown field; the fields are {', '.join(known)}")
    needed = [field.name for field in fields(SandboxFlow) if field.default is MISSING]
    missing = [name for name in needed if name not in mapping]
    if missing:
        raise ValueError(f"{missing[0]}: missing")
    return SandboxFlow(**mapping)


def behaviour(flow: SandboxFlow) -> dict[str, Any]:
    """Return the behaviour of the flow's runs, as JSON-safe values that ``flow_from_mapping`` reads."""
    values = {name: value for name, value in asdict(flow).items() if name not in _DOCUMENTED}
    return {name: "forever" if value == FOREVER else value for name, value in values.items()}


def load_flows(path: Path) -> list[SandboxFlow]:
    """
    Read flows from a YAML file: a list of flows below the key ``flows``.

    :param path: The file.
    :return: The flows, in the file's order.
    :raises ValueError: the file is invalid; the message names the file, the flow and the field.
    :raises OSError: the file cannot be read.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from error
    entries = content.get("flows") if isinstance(content, Mapping) else None
    if not isinstance(entries, list) or len(content) != 1:
        raise ValueError(f"{path}: expected one key, 'flows', with a list of flows")
    flows = []
    for position, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping):
            raise ValueError(f"{path}: flow {position}: expected a mapping of fields, got {entry!r}")  # noqa: TRY004 - the file's value
        try:
            flows.append(flow_from_mapping(entry))
        except ValueError as error:
            raise ValueError(f"{path}: {_which(position, entry)}: {error}") from error
    try:
        check_distinct(flows)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return flows


def built_in_flows() -> list[SandboxFlow]:
    """Return the flows of a small company, the default of a sandbox."""
    return load_flows(BUILT_IN)


def check_distinct(flows: Iterable[SandboxFlow]) -> None:
    """
    Check that ids, names and listener paths are unique.

    :raises ValueError: two flows share one.
    """
    seen: dict[tuple[str, object], SandboxFlow] = {}
    for flow in flows:
        for field in ("id", "name", "listener"):
            value = getattr(flow, field)
            other = seen.setdefault((field, value), flow)
            if value is not None and other is not flow:
                raise ValueError(f"{field}: {value!r} is used by two flows, {other.id} and {flow.id}")


def _which(position: int, entry: Mapping[str, Any]) -> str:
    name = entry.get("name")
    return f"flow {position} ({name!r})" if name else f"flow {position}"


def _require(field: str, value: object, wanted: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{field}: expected {wanted}, got {value!r}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _string_tuple(field: str, value: object) -> tuple[str, ...]:
    usable = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    _require(field, value, "a list of texts", usable)
    return tuple(value)  # type: ignore[arg-type]


def _seconds(field: str, value: object) -> float:
    if field == "running" and value == "forever":
        return FOREVER
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    _require(field, value, "a number of seconds, 0 or more", usable)
    return float(value)  # type: ignore[arg-type]
