"""One organization in Etlworks: its flows, runs, connections, schedules, webhooks and audit log."""

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
    string_list,
)
from airflow_provider_etlworks.sandbox.runs import Run, RunStore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

AUDIT_EVENTS_KEPT = 10_000
SCHEDULER = "scheduler"

# Fields that the sandbox computes; a PUT cannot set them.
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
    """A stored flow: the behaviour of its runs, and the rest of its document."""

    plan: SandboxFlow
    created: float
    modified: int
    modified_by: str
    details: dict[str, Any] = field(default_factory=dict)


class Organization:
    """
    The state behind the API. Every method returns at once; between two calls only time passes.

    :param flows: Its flows.
    :param clock: Returns the time in seconds.
    :param time_scale: Multiplies the seconds of every flow.
    :param stop_takes: Seconds between a stop and the end of the run.
    :param echo_parameters: What shows the parameters of a run: ``record``, ``log``.
    """

    def __init__(
        self,
        flows: Iterable[SandboxFlow],
        *,
        clock: Callable[[], float],
        time_scale: float,
        stop_takes: float,
        echo_parameters: Collection[str] = (),
    ) -> None:
        self.clock = clock
        self.runs = RunStore(clock)
        self.schedules: dict[int, dict[str, Any]] = {}
        self.connections: dict[int, dict[str, Any]] = {}
        self.webhooks: dict[int, dict[str, Any]] = {}
        self.audit: deque[dict[str, Any]] = deque(maxlen=AUDIT_EVENTS_KEPT)
        self._flows: dict[int, StoredFlow] = {}
        self._time_scale = time_scale
        self._stop_takes = stop_takes
        self._echo_parameters = echo_parameters
        plans = list(flows)
        check_distinct(plans)
        for plan in plans:
            self.add_flow(plan)

    # Flows

    def plans(self) -> dict[int, SandboxFlow]:
        """Return the flows by id, with their present names and tags."""
        return {flow_id: stored.plan for flow_id, stored in self._flows.items()}

    def add_flow(self, plan: SandboxFlow) -> None:
        """
        Add a flow with its schedule and connections, or replace the one with the same id.

        :raises ValueError: another flow has its name or listener path.
        """
        self.check_unique([plan])
        connections = [self._ensure_connection(name, plan.owner) for name in plan.connections]
        self.put_flow(plan, {"connections": references(connections)}, plan.owner)
        if plan.schedule is not None and not self._schedules_of(plan.id):
            body = {"name": f"Schedule of {plan.name}", "flowId": plan.id, "schedule": plan.schedule}
            self.create_schedule(body, plan.owner)

    def check_unique(self, plans: Sequence[SandboxFlow]) -> None:
        """
        Check that flows can be added, or can replace those with the same ids.

        :raises ValueError: two flows would share an id, a name or a listener path.
        """
        arriving = {plan.id for plan in plans}
        check_distinct([*plans, *(plan for flow_id, plan in self.plans().items() if flow_id not in arriving)])

    def put_flow(self, plan: SandboxFlow, details: Mapping[str, Any], user: str) -> None:
        """Store a flow as a new version, even within the millisecond of the previous one."""
        before = self._flows.get(plan.id)
        now = self.clock()
        self._flows[plan.id] = StoredFlow(
            plan,
            created=before.created if before else now,
            modified=max(int(now * 1000), before.modified + 1 if before else 0),
            modified_by=user,
            details=dict(details),
        )
        self.record_event("update" if before else "create", "flow", plan.id, user)

    def flow_to_replace(self, name: str, flow_type: str) -> SandboxFlow | None:
        """Return the flow that an import replaces, if any; 409 if the name belongs to one of another type."""
        flow = next((plan for plan in self.plans().values() if plan.name == name), None)
        if flow is not None and flow.flow_type != flow_type:
            raise ApiError(409, f"Flow '{name}' exists with another type, '{flow.flow_type}'")
        return flow

    def new_flow_id(self) -> int:
        """Return an unused flow id."""
        return max(self._flows, default=0) + 1

    def flow(self, flow_id: int) -> SandboxFlow:
        """Return a flow; 404 if there is none."""
        return self._stored(flow_id).plan

    def flow_by_name(self, name: str) -> SandboxFlow:
        """Return the flow with exactly that name; 404 if there is none."""
        for stored in self._flows.values():
            if stored.plan.name == name:
                return stored.plan
        raise ApiError(404, f"Flow '{name}' not found")

    def summaries(self) -> list[dict[str, Any]]:
        """Return the entries of the list of flows."""
        return [self._summary(stored) for stored in self._flows.values()]

    def document(self, flow_id: int) -> dict[str, Any]:
        """Return the whole flow; 404 if there is none."""
        stored = self._stored(flow_id)
        return {**_EMPTY_DETAILS, **stored.details, **self._summary(stored)}

    def replace_flow(self, flow_id: int, body: Mapping[str, Any], user: str) -> dict[str, Any]:
        """
        Replace a flow by the body. Fields that the body lacks are deleted.

        Answers 400 for an invalid body, 404 for an unknown flow, and 409 for a body that is older than the flow's last
        change or has the name of another flow.
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
            tags=tuple(string_list(body, "tags")),
            connections=tuple(connection["name"] for connection in connections),
        )
        try:
            self.check_unique([plan])
        except ValueError as error:
            raise ApiError(409, str(error)) from None
        own = {"name", "description", "flowType", "tags", *_COMPUTED}
        details = {name: value for name, value in body.items() if name not in own}
        self.put_flow(plan, {**details, "connections": references(connections)}, user)
        return self.document(flow_id)

    # Runs

    def start_run(self, plan: SandboxFlow, user: str, parameters: Mapping[str, str]) -> Run | None:
        """Start a run through the API; None if the flow is already running."""
        if self.runs.unfinished(plan.id):
            return None
        return self.begin_run(plan, user, parameters=parameters)

    def begin_run(self, plan: SandboxFlow, user: str, **details: Any) -> Run:
        """Start a run even if another one is going, as schedules, listeners and other people can."""
        run = self.runs.start(
            plan,
            user,
            time_scale=self._time_scale,
            stop_takes=self._stop_takes,
            echo=self._echo_parameters,
            **details,
        )
        self.record_event("execute", "flow", plan.id, user)
        return run

    def run_by_schedule(self, plan: SandboxFlow) -> Run:
        """Start a run as the flow's schedule does."""
        schedule = next(iter(self._schedules_of(plan.id)), {"id": 0, "name": f"Schedule of {plan.name}"})
        return self.begin_run(plan, SCHEDULER, event_id=schedule["id"], event_name=schedule["name"])

    def listening(self, path: str) -> SandboxFlow | None:
        """Return the flow that listens at the path, if there is one."""
        plans = (stored.plan for stored in self._flows.values() if stored.plan.listener is not None)
        return next((plan for plan in plans if (plan.listener or "").strip("/") == path.strip("/")), None)

    def receive(self, plan: SandboxFlow, user: str) -> Run:
        """Start a run of a flow that listens."""
        return self.begin_run(plan, user, message_id=str(uuid.uuid4()))

    def run(self, flow_id: int, audit_id: int) -> Run:
        """Return a run; 404 if there is none, or if its record is not readable."""
        self.flow(flow_id)
        run = self.runs.readable(flow_id, audit_id)
        if run is None:
            raise ApiError(404, f"Flow {flow_id} has no execution {audit_id}")
        return run

    def newest_run(self, flow_id: int, status: str | None) -> Run:
        """Return the newest run, or the newest with that status; 404 if there is none."""
        self.flow(flow_id)
        now = self.clock()
        for run in self.runs.newest_first(flow_id):
            if status is None or run.status(now) == status:
                return run
        raise ApiError(404, f"Flow {flow_id} has no execution" + (f" with status '{status}'" if status else ""))

    def run_to_stop(self, flow_id: int, audit_id: int | None) -> Run:
        """Return a run, or the newest, even if its record is not readable yet; 404 if there is none."""
        run = self.runs.newest(flow_id) if audit_id is None else self.runs.find(audit_id)
        if run is None or run.flow.id != flow_id:
            raise ApiError(404, f"Flow {flow_id} has no execution" + ("" if audit_id is None else f" {audit_id}"))
        return run

    def run_by_message(self, flow_id: int, message_id: str) -> Run:
        """Return the run that a message started; 404 if there is none."""
        self.flow(flow_id)
        run = self.runs.by_message(flow_id, message_id)
        if run is None:
            raise ApiError(404, f"Flow {flow_id} has no execution for message '{message_id}'")
        return run

    def stop_run(self, run: Run, user: str) -> bool:
        """Ask a run to stop; False if it has already ended."""
        if run.ended(self.clock()) is not None:
            return False
        if run.stopped_at is None:
            run.stopped_at, run.stopped_by = self.clock(), user
            self.record_event("stop", "flow", run.flow.id, user)
        return True

    # Schedules, connections, webhooks, audit

    def create_schedule(self, body: Mapping[str, Any], user: str) -> dict[str, Any]:
        """Create a schedule; 400 for an invalid body."""
        flow_id = required(body, "flowId", int)
        if flow_id not in self._flows:
            raise ApiError(400, f"Field 'flowId' must be an existing flow; {flow_id} does not exist")
        schedule = {
            "id": _new_id(self.schedules),
            "name": required(body, "name", str),
            "description": optional(body, "description", str, ""),
            "flowId": flow_id,
            "schedule": required(body, "schedule", str),
            "enabled": optional(body, "enabled", bool, True),
            "tags": string_list(body, "tags"),
            "emailSuccess": optional(body, "emailSuccess", bool, False),
            "emailFailure": optional(body, "emailFailure", bool, False),
            "emails": optional(body, "emails", str, ""),
            "retries": optional(body, "retries", int, 0),
            "delayBetweenRetries": optional(body, "delayBetweenRetries", int, 0),
            "expectedTime": optional(body, "expectedTime", int, 0),
            "debug": optional(body, "debug", bool, False),
            "logStep": optional(body, "logStep", int, 0),
            "keepMessage": optional(body, "keepMessage", bool, False),
            "keepEmptyAudit": optional(body, "keepEmptyAudit", bool, True),
        }
        return self._store(self.schedules, schedule, "schedule", user)

    def enable_schedule(self, schedule_id: int, enabled: bool, user: str) -> dict[str, Any]:
        """Resume or pause a schedule; 404 if there is none."""
        schedule = _member(self.schedules, schedule_id, "Schedule")
        if schedule["enabled"] is not enabled:
            schedule["enabled"] = enabled
            schedule["modified"] = milliseconds(self.clock())
            self.record_event("update", "schedule", schedule_id, user)
        return schedule

    def create_connection(self, body: Mapping[str, Any], user: str) -> dict[str, Any]:
        """Create a connection; 400 for an invalid body, 409 for a name already used."""
        connection = {"id": _new_id(self.connections), **connection_body(body)}
        if self.connection_by_name(connection["name"]) is not None:
            raise ApiError(409, f"There is another connection named '{connection['name']}'")
        return self._store(self.connections, connection, "connection", user)

    def replace_connection(self, connection: dict[str, Any], body: Mapping[str, Any], user: str) -> None:
        """Overwrite a connection's fields with those of the body."""
        connection |= {**connection_body(body), "modified": milliseconds(self.clock())}
        self.record_event("update", "connection", connection["id"], user)

    def connection_by_name(self, name: str) -> dict[str, Any] | None:
        """Return the connection with that name, if there is one."""
        return next((one for one in self.connections.values() if one["name"] == name), None)

    def connection_to_replace(self, name: str, connection_type: str) -> dict[str, Any] | None:
        """Return the connection that an import replaces, if any; 409 if the name belongs to one of another type."""
        connection = self.connection_by_name(name)
        if connection is not None and connection["connectionType"] != connection_type:
            raise ApiError(409, f"Connection '{name}' exists with another type, '{connection['connectionType']}'")
        return connection

    def connection(self, connection_id: int) -> dict[str, Any]:
        """Return a connection; 404 if there is none."""
        return _member(self.connections, connection_id, "Connection")

    def create_webhook(self, body: Mapping[str, Any], user: str) -> dict[str, Any]:
        """Create a webhook; 400 for an invalid body. The answer repeats its secrets, as Etlworks's does."""
        webhook = {
            "id": _new_id(self.webhooks),
            "name": required(body, "name", str),
            "description": optional(body, "description", str, ""),
            "events": string_list(body, "events"),
            # Empty for one that only sends e-mails.
            "url": optional(body, "url", str, ""),
            "method": optional(body, "method", str, "POST"),
            "contentType": optional(body, "contentType", str, "application/json"),
            "includeEntity": optional(body, "includeEntity", bool, False),
            "headers": optional(body, "headers", list, []),
            "secret": optional(body, "secret", str, ""),
            "basicUser": optional(body, "basicUser", str, ""),
            "basicPass": optional(body, "basicPass", str, ""),
            "flowIncludes": optional(body, "flowIncludes", list, []),
            "flowExcludes": optional(body, "flowExcludes", list, []),
            "enabled": optional(body, "enabled", bool, True),
        }
        if not webhook["events"]:
            raise ApiError(400, "Field 'events' is required")
        if webhook["method"] not in ("POST", "GET"):
            raise ApiError(400, "Field 'method' must be POST or GET")
        if not all(isinstance(header, dict) and {"key", "value"} <= set(header) for header in webhook["headers"]):
            raise ApiError(400, "Field 'headers' must be a list of objects with 'key' and 'value'")
        return self._store(self.webhooks, webhook, "webhook", user)

    def delete_webhook(self, webhook_id: int, user: str) -> None:
        """Delete a webhook; 404 if there is none."""
        _member(self.webhooks, webhook_id, "Webhook")
        del self.webhooks[webhook_id]
        self.record_event("delete", "webhook", webhook_id, user)

    def record_event(self, action: str, resource_type: str, resource_id: int | None, user: str) -> None:
        """Add an event to the audit log."""
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

    def _ensure_connection(self, name: str, user: str) -> dict[str, Any]:
        existing = self.connection_by_name(name)
        if existing is not None:
            return existing
        properties = {"field.connection.password": f"{{{{secret:{name}}}}}"}
        body = {"name": name, "connectionType": "connection.db.postgres", "properties": properties}
        return self.create_connection(body, user)

    def _store(
        self, members: dict[int, dict[str, Any]], member: dict[str, Any], kind: str, user: str
    ) -> dict[str, Any]:
        now = milliseconds(self.clock())
        member |= {"createdBy": user, "created": now, "modified": now}
        members[member["id"]] = member
        self.record_event("create", kind, member["id"], user)
        return member


def references(connections: Iterable[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """Return the references to connections in a flow's document."""
    return [{"id": connection["id"], "name": connection["name"]} for connection in connections if connection]


def connection_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """Check the fields of a connection and return them; 400 if one is invalid."""
    return {
        "name": required(body, "name", str),
        "description": optional(body, "description", str, ""),
        "connectionType": required(body, "connectionType", str),
        "properties": optional(body, "properties", dict, {}),
        "tags": string_list(body, "tags"),
    }


def _new_id(members: Mapping[int, object]) -> int:
    return max(members, default=0) + 1


def _member(members: Mapping[int, dict[str, Any]], member_id: int, kind: str) -> dict[str, Any]:
    member = members.get(member_id)
    if member is None:
        raise ApiError(404, f"{kind} {member_id} not found")
    return member
