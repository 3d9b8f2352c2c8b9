"""One organization in Etlworks: its flows, their runs, and what else belongs to them."""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.sandbox.flows import SandboxFlow, check_distinct
from airflow_provider_etlworks.sandbox.messages import (
    ApiError,
    milliseconds,
    optional,
    required,
    texts,
)
from airflow_provider_etlworks.sandbox.runs import Run, RunBook

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

AUDIT_EVENTS_KEPT = 10_000

# What a summary says, or the sandbox works out itself; a PUT cannot set it.
_COMPUTED = (
    "id",
    "enabledSchedules",
    "disabledSchedules",
    "latestFinishedStatus",
    "createdBy",
    "created",
    "modifiedBy",
    "modified",
)
_EMPTY_DETAILS: dict[str, Any] = {
    "properties": {},
    "transformations": [],
    "mappings": [],
    "connections": [],
    "nestedFlows": [],
}


@dataclass
class StoredFlow:
    """A flow as the organization keeps it: how its runs go, and the rest of its document."""

    plan: SandboxFlow
    created: float
    modified: int
    modified_by: str
    details: dict[str, Any] = field(default_factory=dict)


class Organization:
    """
    The state behind the API. Every method answers at once; nothing happens between two calls but time.

    :param flows: The flows it has.
    :param clock: Returns the time in seconds.
    :param pace: Multiplies the seconds of every flow.
    :param stop_takes: Seconds between a stop and the end of the run.
    :param echo_parameters: What shows the parameters of a run: ``record``, ``log``.
    """

    def __init__(
        self,
        flows: Iterable[SandboxFlow],
        *,
        clock: Callable[[], float],
        pace: float,
        stop_takes: float,
        echo_parameters: Collection[str] = (),
    ) -> None:
        self.clock = clock
        self.runs = RunBook(clock)
        self.schedules: dict[int, dict[str, Any]] = {}
        self.connections: dict[int, dict[str, Any]] = {}
        self.webhooks: dict[int, dict[str, Any]] = {}
        self.audit: deque[dict[str, Any]] = deque(maxlen=AUDIT_EVENTS_KEPT)
        self._flows: dict[int, StoredFlow] = {}
        self._pace = pace
        self._stop_takes = stop_takes
        self._echo_parameters = echo_parameters
        plans = list(flows)
        check_distinct(plans)
        for plan in plans:
            self.add_flow(plan)

    # Flows

    def plans(self) -> dict[int, SandboxFlow]:
        """Return the flows by id, with the names and tags they have now."""
        return {flow_id: stored.plan for flow_id, stored in self._flows.items()}

    def add_flow(self, plan: SandboxFlow) -> None:
        """
        Add a flow, with its schedule and connections, or replace the one that has its id.

        :raises ValueError: another flow has its name or listener path.
        """
        self.check_arrivals([plan])
        connections = [self._connection_named(name, plan.owner) for name in plan.connections]
        self.put_flow(plan, {"connections": references(connections)}, plan.owner)
        if plan.schedule is not None and not self._schedules_of(plan.id):
            body = {"name": f"Schedule of {plan.name}", "flowId": plan.id, "schedule": plan.schedule}
            self.create_schedule(body, plan.owner)

    def check_arrivals(self, plans: Sequence[SandboxFlow]) -> None:
        """
        Check that flows can be added, or replace those that have their ids.

        :raises ValueError: two flows would share an id, a name or a listener path.
        """
        arriving = {plan.id for plan in plans}
        check_distinct([*plans, *(plan for flow_id, plan in self.plans().items() if flow_id not in arriving)])

    def put_flow(self, plan: SandboxFlow, details: Mapping[str, Any], user: str) -> None:
        """Store a flow. It is a new version even if it comes in the same millisecond as the one before."""
        before = self._flows.get(plan.id)
        now = self.clock()
        self._flows[plan.id] = StoredFlow(
            plan,
            created=before.created if before else now,
            modified=max(int(now * 1000), before.modified + 1 if before else 0),
            modified_by=user,
            details=dict(details),
        )
        self.note("update" if before else "create", "flow", plan.id, user)

    def flow_to_replace(self, name: str, flow_type: str) -> SandboxFlow | None:
        """Return the flow that an import replaces, if any; 409 where one of another type has the name."""
        flow = next((plan for plan in self.plans().values() if plan.name == name), None)
        if flow is not None and flow.flow_type != flow_type:
            raise ApiError(409, f"Flow '{name}' exists with another type, '{flow.flow_type}'")
        return flow

    def new_flow_id(self) -> int:
        """Return an id that no flow has."""
        return max(self._flows, default=0) + 1

    def flow(self, flow_id: int) -> SandboxFlow:
        """Return a flow; 404 where there is none."""
        return self._stored(flow_id).plan

    def flow_named(self, name: str) -> SandboxFlow:
        """Return the flow with exactly that name; 404 where there is none."""
        for stored in self._flows.values():
            if stored.plan.name == name:
                return stored.plan
        raise ApiError(404, f"Flow '{name}' not found")

    def summaries(self) -> list[dict[str, Any]]:
        """Return what the list of flows says about each."""
        return [self._summary(stored) for stored in self._flows.values()]

    def document(self, flow_id: int) -> dict[str, Any]:
        """Return the whole flow; 404 where there is none."""
        stored = self._stored(flow_id)
        return {**_EMPTY_DETAILS, **stored.details, **self._summary(stored)}

    def replace_flow(self, flow_id: int, body: Mapping[str, Any], user: str) -> dict[str, Any]:
        """
        Replace a flow by the body. What the body does not have is gone.

        Answers 400 for a body that is no flow, 404 for an unknown flow, 409 for a body read before the flow's last
        change and for a name that another flow has.
        """
        stored = self._stored(flow_id)
        if optional(body, "id", int, flow_id) != flow_id:
            raise ApiError(400, f"Field 'id' must be {flow_id}, the flow's own")
        if optional(body, "modified", int, stored.modified) < stored.modified:
            raise ApiError(409, f"Flow {flow_id} was changed since you read it; read it again")
        connections = self._used_connections(body)
        plan = replace(
            stored.plan,
            name=required(body, "name", str),
            description=optional(body, "description", str, ""),
            flow_type=optional(body, "flowType", str, ""),
            tags=tuple(texts(body, "tags")),
            connections=tuple(connection["name"] for connection in connections),
        )
        try:
            self.check_arrivals([plan])
        except ValueError as error:
            raise ApiError(409, str(error)) from None
        own = {"name", "description", "flowType", "tags", *_COMPUTED}
        details = {name: value for name, value in body.items() if name not in own}
        self.put_flow(plan, {**details, "connections": references(connections)}, user)
        return self.document(flow_id)

    # Runs

    def start_run(self, plan: SandboxFlow, user: str, parameters: Mapping[str, str]) -> Run | None:
        """Start a run through the API; None where the flow is running already."""
        if self.runs.unfinished(plan.id):
            return None
        return self.begin_run(plan, user, parameters=parameters)

    def begin_run(self, plan: SandboxFlow, user: str, **details: Any) -> Run:
        """Start a run whatever else the flow is doing, as schedules, listeners and other people can."""
        run = self.runs.start(
            plan, user, pace=self._pace, stop_takes=self._stop_takes, echo=self._echo_parameters, **details
        )
        self.note("execute", "flow", plan.id, user)
        return run

    def run_by_schedule(self, plan: SandboxFlow) -> Run:
        """Start a run as the flow's schedule does."""
        schedule = next(iter(self._schedules_of(plan.id)), {"id": 0, "name": f"Schedule of {plan.name}"})
        return self.begin_run(plan, plan.owner, event_id=schedule["id"], event_name=schedule["name"])

    def receive(self, path: str, user: str) -> Run:
        """Start a run of the flow that listens at the path; 404 where none does."""
        for stored in self._flows.values():
            if stored.plan.listener is not None and stored.plan.listener.strip("/") == path.strip("/"):
                return self.begin_run(stored.plan, user, message_id=str(uuid.uuid4()))
        raise ApiError(404, f"No flow listens at '{path}'")

    def run(self, flow_id: int, audit_id: int) -> Run:
        """Return a run; 404 where there is none, or its record cannot be read."""
        self.flow(flow_id)
        run = self.runs.readable(flow_id, audit_id)
        if run is None:
            raise ApiError(404, f"Flow {flow_id} has no execution {audit_id}")
        return run

    def newest_run(self, flow_id: int, status: str | None) -> Run:
        """Return the newest run, or the newest with that status; 404 where there is none."""
        self.flow(flow_id)
        now = self.clock()
        for run in self.runs.newest_first(flow_id):
            if status is None or run.status(now) == status:
                return run
        raise ApiError(404, f"Flow {flow_id} has no execution" + (f" with status '{status}'" if status else ""))

    def run_to_stop(self, flow_id: int, audit_id: int | None) -> Run:
        """Return a run, or the newest, even if its record cannot be read yet; 404 where there is none."""
        run = self.runs.newest(flow_id) if audit_id is None else self.runs.find(audit_id)
        if run is None or run.flow.id != flow_id:
            raise ApiError(404, f"Flow {flow_id} has no execution" + ("" if audit_id is None else f" {audit_id}"))
        return run

    def run_of_message(self, flow_id: int, message_id: str) -> Run:
        """Return the run that a message started; 404 where there is none."""
        self.flow(flow_id)
        run = self.runs.by_message(flow_id, message_id)
        if run is None:
            raise ApiError(404, f"Flow {flow_id} has no execution for message '{message_id}'")
        return run

    def stop_run(self, run: Run, user: str) -> bool:
        """Ask a run to stop; False where it has ended already."""
        if run.ended(self.clock()) is not None:
            return False
        if run.stopped_at is None:
            run.stopped_at, run.stopped_by = self.clock(), user
            self.note("stop", "flow", run.flow.id, user)
        return True

    # What else there is

    def create_schedule(self, body: Mapping[str, Any], user: str) -> dict[str, Any]:
        """Create a schedule; 400 for a body that is none."""
        flow_id = required(body, "flowId", int)
        if flow_id not in self._flows:
            raise ApiError(400, f"Field 'flowId' must be an existing flow, and {flow_id} is none")
        schedule = {
            "id": _new_id(self.schedules),
            "name": required(body, "name", str),
            "description": optional(body, "description", str, ""),
            "flowId": flow_id,
            "schedule": required(body, "schedule", str),
            "enabled": optional(body, "enabled", bool, True),
            "tags": texts(body, "tags"),
        }
        return self._keep(self.schedules, schedule, "schedule", user)

    def enable_schedule(self, schedule_id: int, enabled: bool, user: str) -> dict[str, Any]:
        """Resume or pause a schedule; 404 where there is none."""
        schedule = _member(self.schedules, schedule_id, "Schedule")
        if schedule["enabled"] is not enabled:
            schedule["enabled"] = enabled
            schedule["modified"] = milliseconds(self.clock())
            self.note("update", "schedule", schedule_id, user)
        return schedule

    def create_connection(self, body: Mapping[str, Any], user: str) -> dict[str, Any]:
        """Create a connection; 400 for a body that is none, 409 for a name already used."""
        connection = {"id": _new_id(self.connections), **connection_body(body)}
        if self.connection_with(connection["name"]) is not None:
            raise ApiError(409, f"There is another connection named '{connection['name']}'")
        return self._keep(self.connections, connection, "connection", user)

    def replace_connection(self, connection: dict[str, Any], body: Mapping[str, Any], user: str) -> None:
        """Overwrite a connection's fields by those of the body."""
        connection |= {**connection_body(body), "modified": milliseconds(self.clock())}
        self.note("update", "connection", connection["id"], user)

    def connection_with(self, name: str) -> dict[str, Any] | None:
        """Return the connection with that name, if there is one."""
        return next((one for one in self.connections.values() if one["name"] == name), None)

    def connection_to_replace(self, name: str, connection_type: str) -> dict[str, Any] | None:
        """Return the connection that an import replaces, if any; 409 where one of another type has the name."""
        connection = self.connection_with(name)
        if connection is not None and connection["connectionType"] != connection_type:
            raise ApiError(409, f"Connection '{name}' exists with another type, '{connection['connectionType']}'")
        return connection

    def connection(self, connection_id: int) -> dict[str, Any]:
        """Return a connection; 404 where there is none."""
        return _member(self.connections, connection_id, "Connection")

    def create_webhook(self, body: Mapping[str, Any], user: str) -> dict[str, Any]:
        """Create a webhook; 400 for a body that is none. Its secret is not told again."""
        webhook = {
            "id": _new_id(self.webhooks),
            "name": required(body, "name", str),
            "description": optional(body, "description", str, ""),
            "events": texts(body, "events"),
            "url": required(body, "url", str),
            "method": optional(body, "method", str, "POST"),
            "flowIncludes": optional(body, "flowIncludes", list, []),
            "flowExcludes": optional(body, "flowExcludes", list, []),
            "enabled": optional(body, "enabled", bool, True),
        }
        if not webhook["events"]:
            raise ApiError(400, "Field 'events' is required")
        return self._keep(self.webhooks, webhook, "webhook", user)

    def note(self, action: str, resource_type: str, resource_id: int | None, user: str) -> None:
        """Write an event into the audit log."""
        self.audit.appendleft(
            {
                "timestamp": milliseconds(self.clock()),
                "user": user,
                "action": action,
                "resourceType": resource_type,
                "resourceId": resource_id,
            }
        )

    def _stored(self, flow_id: int) -> StoredFlow:
        stored = self._flows.get(flow_id)
        if stored is None:
            raise ApiError(404, f"Flow {flow_id} not found")
        return stored

    def _summary(self, stored: StoredFlow) -> dict[str, Any]:
        plan = stored.plan
        enabled = [schedule["enabled"] for schedule in self._schedules_of(plan.id)]
        now = self.clock()
        finished = (run.status(now) for run in self.runs.newest_first(plan.id) if run.ended(now) is not None)
        return {
            "id": plan.id,
            "name": plan.name,
            "description": plan.description,
            "flowType": plan.flow_type,
            "tags": list(plan.tags),
            "enabledSchedules": enabled.count(True),
            "disabledSchedules": enabled.count(False),
            "latestFinishedStatus": next(finished, None),
            "createdBy": plan.owner,
            "created": milliseconds(stored.created),
            "modifiedBy": stored.modified_by,
            "modified": stored.modified,
        }

    def _schedules_of(self, flow_id: int) -> list[dict[str, Any]]:
        return [schedule for schedule in self.schedules.values() if schedule["flowId"] == flow_id]

    def _used_connections(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        entries: list[Any] = optional(body, "connections", list, [])
        wanted = [entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), int)]
        if len(wanted) < len(entries) or not set(wanted) <= set(self.connections):
            raise ApiError(400, "Field 'connections' must be a list of existing connections, each with its 'id'")
        return [self.connections[connection_id] for connection_id in wanted]

    def _connection_named(self, name: str, user: str) -> dict[str, Any]:
        existing = self.connection_with(name)
        if existing is not None:
            return existing
        properties = {"field.connection.password": f"{{{{secret:{name}}}}}"}
        body = {"name": name, "connectionType": "connection.db.postgres", "properties": properties}
        return self.create_connection(body, user)

    def _keep(self, members: dict[int, dict[str, Any]], member: dict[str, Any], kind: str, user: str) -> dict[str, Any]:
        now = milliseconds(self.clock())
        member |= {"createdBy": user, "created": now, "modified": now}
        members[member["id"]] = member
        self.note("create", kind, member["id"], user)
        return member


def references(connections: Iterable[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """Return what a flow's document says about the connections it uses."""
    return [{"id": connection["id"], "name": connection["name"]} for connection in connections if connection]


def connection_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """Check the fields of a connection and return them; 400 where one cannot be used."""
    return {
        "name": required(body, "name", str),
        "description": optional(body, "description", str, ""),
        "connectionType": required(body, "connectionType", str),
        "properties": optional(body, "properties", dict, {}),
        "tags": texts(body, "tags"),
    }


def _new_id(members: Mapping[int, object]) -> int:
    return max(members, default=0) + 1


def _member(members: Mapping[int, dict[str, Any]], member_id: int, kind: str) -> dict[str, Any]:
    member = members.get(member_id)
    if member is None:
        raise ApiError(404, f"{kind} {member_id} not found")
    return member
