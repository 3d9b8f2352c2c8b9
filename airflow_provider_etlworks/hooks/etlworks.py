"""The hook: makes a client from an Airflow connection."""

from __future__ import annotations

import datetime as dt
import re
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.call import JSON_TYPE
from airflow_provider_etlworks.client.errors import (
    EtlworksConfigError,
    EtlworksConflict,
    EtlworksError,
    EtlworksExecutionTimeout,
    EtlworksLostTouch,
    EtlworksRateLimited,
    EtlworksStartUnknown,
)
from airflow_provider_etlworks.client.flow_selection import find_by_name
from airflow_provider_etlworks.client.models import (
    AuditEvent,
    Connection,
    Execution,
    Flow,
    FlowStart,
    FlowTask,
    Health,
    MetricsSummary,
    Schedule,
    StartStatus,
    Webhook,
)
from airflow_provider_etlworks.client.rate_limit import Priority
from airflow_provider_etlworks.client.redaction import redact_data
from airflow_provider_etlworks.client.streaming import tail_lines
from airflow_provider_etlworks.client.text import storable
from airflow_provider_etlworks.client.values import parse_id, parse_seconds
from airflow_provider_etlworks.compat import AirflowFailException, BaseHook, is_in_mapped_task
from airflow_provider_etlworks.hooks import clients
from airflow_provider_etlworks.hooks.connection import (
    basic_credentials,
    check_extra_field,
    explain_failure,
    settings_from,
)
from airflow_provider_etlworks.provider_info import (
    CONNECTION_FIELDS,
    CONNECTION_TYPE,
    DEFAULT_CONN_ID,
    FIELD_BEHAVIOUR,
)
from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE, DEFAULT_POLL_INTERVAL
from airflow_provider_etlworks.runs.follow import Ending, follow
from airflow_provider_etlworks.runs.outage import OutageWait
from airflow_provider_etlworks.runs.start import RunStarter
from airflow_provider_etlworks.runs.stop import StopResult, stop_run
from airflow_provider_etlworks.runs.types import PollPolicy, RunRef

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
    from airflow_provider_etlworks.client.settings import ClientSettings
    from airflow_provider_etlworks.client.streaming import Body
    from airflow_provider_etlworks.client.sync import EtlworksClient

# Of the module, since a hook with a lock could not be copied.
_CREATING_CLIENT = threading.Lock()

# What the connection form promises, and what of it the health may take.
_SECONDS_FOR_TEST = 15.0
_SECONDS_FOR_HEALTH = 5.0


class StartInDoubt(AirflowFailException, EtlworksStartUnknown):
    """``EtlworksStartUnknown`` that Airflow does not retry: a retry might start a second run."""


class EtlworksHook(BaseHook):
    """
    Calls Etlworks with the settings of an Airflow connection.

    ``hook.client`` sends any call of :mod:`airflow_provider_etlworks.client.endpoints`; the methods here are for
    ``@task`` functions. A failure raises an error of :mod:`airflow_provider_etlworks.client.errors`.

    :param etlworks_conn_id: the Airflow connection, of type ``etlworks``.
    """

    conn_name_attr = "etlworks_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = CONNECTION_TYPE
    hook_name = "Etlworks"

    def __init__(self, etlworks_conn_id: str = DEFAULT_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.etlworks_conn_id = etlworks_conn_id

    # --- The connection -------------------------------------------------------------------------------------------

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Return the form's extra fields for Airflow before 3.2; later ones read them from the provider info."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from wtforms import StringField
        from wtforms.validators import Optional, ValidationError

        def check(form: Any, field: Any) -> None:
            # Airflow 2 names the form's fields "extra__etlworks__verify".
            try:
                check_extra_field(field.name.rpartition("__")[2], field.data)
            except EtlworksConfigError as error:
                raise ValidationError(str(error)) from None

        return {
            name: StringField(
                each["label"],
                widget=BS3TextFieldWidget(),
                description=each["description"],
                validators=[Optional(), check],
            )
            for name, each in CONNECTION_FIELDS.items()
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return how the form shows the common fields, for Airflow before 3.2."""
        return {name.replace("-", "_"): value for name, value in FIELD_BEHAVIOUR.items()}

    @cached_property
    def settings(self) -> ClientSettings:
        """
        The settings of the connection, checked. Read once.

        :raises EtlworksConfigError: the connection cannot work; the message names the field.
        """
        return settings_from(self.get_connection(self.etlworks_conn_id))

    @cached_property
    def client(self) -> EtlworksClient:
        """The client of this connection, with one pool of TCP connections."""
        return self._share("client", clients.standard_client)

    @cached_property
    def bundle_client(self) -> EtlworksClient:
        """A client like :attr:`client` that waits longer for an answer: Etlworks may work on a bundle for minutes."""
        return self._share("bundle_client", clients.bundle_client)

    def _share(self, name: str, create: Callable[[ClientSettings], EtlworksClient]) -> EtlworksClient:
        """Create a client once, also if several threads ask for it. From Python 3.12, ``cached_property`` does not."""
        with _CREATING_CLIENT:
            if name not in self.__dict__:
                self.__dict__[name] = create(self.settings)
            client: EtlworksClient = self.__dict__[name]
            return client

    def get_conn(self) -> EtlworksClient:
        """Return :attr:`client`."""
        return self.client

    @asynccontextmanager
    async def async_client(self) -> AsyncIterator[AsyncEtlworksClient]:
        """Give a client for an event loop: ``async with hook.async_client() as client``."""
        async with clients.async_client(await self.read_settings()) as client:
            yield client

    async def read_settings(self) -> ClientSettings:
        """Read :attr:`settings` without holding the event loop: in Airflow, reading a connection is I/O."""
        return await sync_to_async(lambda: self.settings)()

    def test_connection(self) -> tuple[bool, str]:
        """
        Try the connection: ask how the instance is, log in, and ask for the flows. Changes nothing.

        :return: whether it works, and sentences for a person: why not, and which field to correct; within 15 s. Never
            raises what Etlworks causes.
        """
        began = time.monotonic()
        try:
            settings = self.settings
        except EtlworksError as error:
            return False, str(error)
        health: Health | None = None
        try:
            with clients.test_client(settings, _SECONDS_FOR_HEALTH) as client:
                health = client.send(endpoints.health(), attempts=1)
        except EtlworksRateLimited as error:
            # Any other call would wait as long as the server asks.
            return False, str(error)
        except EtlworksError as error:
            # Also of a working instance, behind a proxy. What follows decides.
            self.log.info("The health of %s cannot be read. %s", settings.root_url, error)
        try:
            with clients.test_client(settings, _SECONDS_FOR_TEST - (time.monotonic() - began)) as client:
                page = client.send(replace(endpoints.list_flows(), limit=1).first(), attempts=1)
        except EtlworksError as error:
            return False, explain_failure(error, settings, health)
        who = f"as {settings.login}" if settings.login else "with an API key"
        count = page.total if page.total is not None else len(page.items)
        return True, f"Connected to {settings.root_url} {who}; {count} flows are visible."

    def execution_url(self, flow_id: int | str, audit_id: int | str) -> str:
        """
        Return the address of a run for people.

        :param flow_id: the flow.
        :param audit_id: the run.
        :return: the connection's ``ui_url``, filled in; without one, the instance's address. Nothing is asked.
        :source: Etlworks documents no address of a single run.
        """
        return self.settings.execution_url(parse_id("flow_id", flow_id), parse_id("audit_id", audit_id))

    # --- Flows and their runs -------------------------------------------------------------------------------------

    def list_flows(
        self,
        *,
        q: str | None = None,
        tags: str | Iterable[str] = (),
        sort: str | None = None,
        since: datetime | str | None = None,
    ) -> Iterator[Flow]:
        """
        List flows, without the parts that only :meth:`get_flow` returns.

        :param q: only flows with this text in their name.
        :param tags: only flows with all these tags; a text is one tag.
        :param sort: Etlworks's name of the field to sort by, ``-`` before it for descending.
        :param since: a datetime or ISO 8601; only flows changed after it.
        :return: an iterator of ``Flow``: id, name, tags, how many schedules are on and off, and more.
        :raises EtlworksForbidden: the role does not allow it.
        :source: REST quickstart, ``GET /v1/flows`` and "Filtering".
        """
        return self.client.iterate(endpoints.list_flows(q=q, tags=tags, sort=sort, since=_iso(since)))

    def get_flow(self, flow_id: int | str) -> Flow:
        """
        Read one whole flow.

        :param flow_id: the flow.
        :return: a ``Flow``; ``raw`` has all of it, such as transformations and connections.
        :raises EtlworksNotFound: there is none, or this user cannot see it.
        :source: code examples, ``GET /v1/flows/{id}``.
        """
        return self.client.send(endpoints.get_flow(parse_id("flow_id", flow_id)))

    def find_flow(self, name: str) -> Flow:
        """
        Find the one flow with exactly this name, case included. All flows are listed for that.

        :param name: the name.
        :return: a ``Flow``, as :meth:`list_flows` gives it.
        :raises EtlworksConfigError: none, or more than one, has it; the message lists candidates.
        :source: quickstart, ``GET /v1/flows``.
        """
        return find_by_name(name, list(self.list_flows()))

    def replace_flow(self, flow_id: int | str, flow: Mapping[str, Any]) -> Flow:
        """
        Replace a whole flow. What ``flow`` lacks is wiped: :meth:`update_flow` changes single fields.

        :param flow_id: the flow.
        :param flow: all of it, by Etlworks's names: what :meth:`get_flow` has in ``raw``, changed.
        :return: the ``Flow`` as it is now.
        :raises EtlworksConflict: somebody else changed it since it was read, or the name is taken.
        :raises EtlworksForbidden: it takes the role Editor.
        :source: code examples, ``PUT /v1/flows/{id}``.
        """
        return self.client.send(endpoints.replace_flow(parse_id("flow_id", flow_id), flow))

    def update_flow(self, flow_id: int | str, changes: Mapping[str, Any]) -> Flow:
        """
        Change some fields of a flow, and keep all others.

        Etlworks replaces flows whole, so the flow is read first. Where somebody else changes it in between (409), it is
        read once more.

        :param flow_id: the flow.
        :param changes: the fields to change, by Etlworks's names, such as ``{"description": "…"}``.
        :return: the ``Flow`` as it is now.
        :raises EtlworksConflict: it was changed again, or the new name is taken.
        :raises EtlworksForbidden: it takes the role Editor.
        :source: code examples, ``PUT /v1/flows/{id}``; quickstart, "409".
        """
        return self._changed(parse_id("flow_id", flow_id), lambda _: changes)

    def tag_flows(
        self,
        flow_ids: int | str | Iterable[int | str],
        add: str | Iterable[str] = (),
        remove: str | Iterable[str] = (),
    ) -> list[Flow]:
        """
        Add and remove tags of flows, and keep their other tags, also those that somebody else adds meanwhile.

        :param flow_ids: the flows. Those that need no change are not written.
        :param add: tags to add; a text is one tag.
        :param remove: tags to remove; a text is one tag.
        :return: each ``Flow`` as it is now.
        :raises EtlworksConflict: a flow was changed twice while its tags were.
        :raises EtlworksForbidden: it takes the role Editor.
        :source: code examples, "Bulk tag flows".
        """
        added, removed = dict.fromkeys(_each(add)), set(_each(remove))

        def retag(flow: Flow) -> Mapping[str, Any]:
            # Not flow.tags, which may be cut: what is written back must be as it was.
            given = flow.raw.get("tags")
            present = given if isinstance(given, list) else []
            kept = [tag for tag in present if not (isinstance(tag, str) and tag in removed)]
            tags = [*kept, *(tag for tag in added if tag not in kept)]
            return {} if tags == present else {"tags": tags}

        return [self._changed(flow_id, retag) for flow_id in _ids(flow_ids)]

    def _changed(self, flow_id: int, change: Callable[[Flow], Mapping[str, Any]]) -> Flow:
        """Apply ``change`` to the flow as it is, and once more if the flow has changed since it was read."""
        for last in (False, True):
            flow = self.get_flow(flow_id)
            changes = change(flow)
            if not changes:
                return flow
            try:
                return self.replace_flow(flow_id, {**flow.raw, **changes})
            except EtlworksConflict:
                if last:
                    raise
        raise AssertionError("the loop returns or raises")

    def run_flow(
        self,
        flow_id: int | str,
        parameters: Mapping[str, str] | None = None,
        *,
        run_options: Mapping[str, Any] | None = None,
        is_only_starter: bool | None = None,
        patience: float | timedelta = DEFAULT_PATIENCE,
    ) -> FlowStart:
        """
        Start a flow, once. A start in doubt is reconciled with the flow's runs before anything is sent again.

        :param flow_id: the flow.
        :param parameters: the flow's parameters, all of them text.
        :param run_options: parameters of the start's URL, such as the one that allows parallel runs.
        :param is_only_starter: whether nobody else starts this flow at the same time. If so, and without
            ``run_options``, the only new run is adopted after a start in doubt, unless it shows another starter.
            Default: not in a mapped task. The connection's ``run_key_parameter`` gives proof instead.
        :param patience: seconds (or a ``timedelta``) for which a busy or unreachable Etlworks is waited for before
            anything is started.
        :return: a ``FlowStart``, with the run's ``audit_id``.
        :raises EtlworksAlreadyRunning: another run of the flow is going; nothing was started.
        :raises EtlworksStartUnknown: the start is in doubt, and no run can be matched to it. Airflow does not retry a
            task that fails with it.
        :raises EtlworksForbidden: it takes the role Operator.
        :source: quickstart, ``POST /v1/flows/{id}/run``.
        """
        flow_id = parse_id("flow_id", flow_id)
        if is_only_starter is None:
            is_only_starter = not is_in_mapped_task()
        policy = PollPolicy(patience=parse_seconds("patience", patience, allow_zero=True))
        goal = f"Flow {flow_id} is not started yet"
        start = RunStarter(
            flow_id=flow_id,
            clock=self.client.clock,
            log=self.log,
            policy=policy,
            outage=OutageWait(policy, clock=self.client.clock, log=self.log, goal=goal),
            parameters=dict(parameters or {}),
            options=dict(run_options or {}),
            user=self.settings.login,
            is_only_starter=is_only_starter and not run_options,
            run_key_parameter=self.settings.run_key_parameter,
            metrics=self.client.metrics,
        )
        try:
            started = self.client.run(start.start(), priority=Priority.START)
        except EtlworksStartUnknown as error:
            raise StartInDoubt(str(error), candidates=error.candidates) from error
        audit_id = started.audit_id if started else None
        return FlowStart(flow_id=flow_id, audit_id=audit_id, status=StartStatus.STARTED, status_code=0)

    def get_execution(
        self,
        flow_id: int | str,
        audit_id: int | str | None = None,
        *,
        status: str | None = None,
        message_uuid: str | None = None,
    ) -> Execution | None:
        """
        Read the record of a run: the one with this audit id, or the flow's newest.

        :param flow_id: the flow.
        :param audit_id: which run; ``None`` is the newest.
        :param status: the newest with this status, such as ``success``.
        :param message_uuid: the one that this message to a listener started.
        :return: an ``Execution``; ``None`` if the run does not exist yet.
        :raises EtlworksNotFound: no run has this audit id.
        :raises EtlworksConfigError: more than one of the three is given.
        :source: quickstart, ``GET /v1/executions/{flowId}``.
        """
        if sum(each is not None for each in (audit_id, status, message_uuid)) > 1:
            raise EtlworksConfigError("Give one of audit_id, status and message_uuid, or none for the newest run.")
        flow_id = parse_id("flow_id", flow_id)
        if audit_id is None:
            return self.client.send(endpoints.latest_execution(flow_id, status=status, message_uuid=message_uuid))
        return self.client.send(endpoints.get_execution(flow_id, parse_id("audit_id", audit_id)))

    def wait_for_execution(
        self,
        flow_id: int | str,
        audit_id: int | str,
        *,
        poll_interval: float | timedelta = DEFAULT_POLL_INTERVAL,
        timeout: float | timedelta | None = None,
        patience: float | timedelta = DEFAULT_PATIENCE,
    ) -> Execution:
        """
        Wait until a run has ended, well or badly.

        :param flow_id: the flow.
        :param audit_id: the run.
        :param poll_interval: seconds (or a ``timedelta``, as for the other times) between two polls of a young run; an
            old run is polled less often.
        :param timeout: the most seconds to wait; ``None`` means no limit.
        :param patience: seconds for which the status may be unreadable.
        :return: the run's last ``Execution``; its ``status`` says how it ended.
        :raises EtlworksExecutionTimeout: it is still going.
        :raises EtlworksLostTouch: its status could not be read for too long.
        :raises EtlworksForbidden: the role does not allow to read runs.
        :source: quickstart, ``GET /v1/executions/{flowId}?auditId=``.
        """
        flow_id = parse_id("flow_id", flow_id)
        audit_id = parse_id("audit_id", audit_id)
        poll_interval, patience = parse_seconds("poll_interval", poll_interval), parse_seconds("patience", patience)
        deadline = None
        if timeout is not None:
            timeout = parse_seconds("timeout", timeout, allow_zero=True)
            deadline = self.client.clock.time() + timeout
        followed = self.client.run(
            follow(
                RunRef(flow_id, audit_id),
                PollPolicy(poll_interval, patience, deadline),
                clock=self.client.clock,
                log=self.log,
            )
        )
        if followed.ending is Ending.FINISHED and followed.execution is not None:
            return followed.execution
        if followed.ending is Ending.DEADLINE:
            raise EtlworksExecutionTimeout(f"Run {audit_id} of flow {flow_id} is still going after {timeout} s.")
        if followed.ending is Ending.DENIED and followed.error is not None:
            raise followed.error
        self.client.metrics.lost_touch()
        raise EtlworksLostTouch(f"Run {audit_id} of flow {flow_id} may still be going. {followed.detail}")

    def stop_flow(self, flow_id: int | str, audit_id: int | str) -> StopResult:
        """
        Ask Etlworks to stop a run. It may take minutes until the run has really stopped.

        Uses connections of its own and short time-outs, so that it works while a signal has interrupted another call.

        :param flow_id: the flow.
        :param audit_id: the run.
        :return: a ``StopResult``: whether Etlworks accepted, and a sentence for a person. Nothing that
            Etlworks causes is raised.
        :source: the connection's ``stop_path``, an assumption; support pages say that runs can be stopped.
        """
        flow_id = parse_id("flow_id", flow_id)
        audit_id = parse_id("audit_id", audit_id)
        with clients.urgent_client(self.settings) as client:
            return client.run(stop_run(RunRef(flow_id, audit_id), self.settings.stop_path))

    def execution_history(self, flow_id: int | str, *, since: datetime | str | None = None) -> Iterator[Execution]:
        """
        List a flow's runs, newest first (an assumption), asking for pages as they are needed.

        :param flow_id: the flow.
        :param since: a datetime or ISO 8601; only runs after it, if the server knows the filter.
        :return: an iterator of ``Execution``.
        :raises EtlworksNotFound: the flow does not exist.
        :source: quickstart, ``GET /v1/executions/{flowId}/history``.
        """
        return self.client.iterate(endpoints.execution_history(parse_id("flow_id", flow_id), since=_iso(since)))

    def execution_log(self, flow_id: int | str, audit_id: int | str, *, last_lines: int | None = None) -> str:
        """
        Read the log of a run.

        :param flow_id: the flow.
        :param audit_id: the run.
        :param last_lines: only so many lines from its end; a long log is then never held in memory.
        :return: the text.
        :raises EtlworksNotFound: the run does not exist.
        :source: support pages, ``GET /v1/executions/console/download``.
        """
        flow_id = parse_id("flow_id", flow_id)
        audit_id = parse_id("audit_id", audit_id)
        call = endpoints.execution_log(flow_id, audit_id)
        if last_lines is None:
            return self.client.send(call)
        with self.client.stream(call) as pieces:
            lines = "\n".join(tail_lines(pieces, last_lines))
        return storable(redact_data(lines, self.settings.secrets))

    def execution_tasks(self, audit_id: int | str, *, type: str | None = None) -> list[FlowTask]:  # noqa: A002  # Etlworks's name
        """
        List the tasks inside a run.

        :param audit_id: the run.
        :param type: only ``stream``, ``extract``, ``load``, ``task`` or ``hwm``.
        :return: a list of ``FlowTask``: name, type, start, duration in milliseconds, records.
        :raises EtlworksForbidden: it takes the role Administrator.
        :raises EtlworksNotFound: the run does not exist.
        :source: support pages, ``GET /etl/rest/v1/tasks/{auditId}/``, below the bare host.
        """
        return self.client.send(endpoints.execution_tasks(parse_id("audit_id", audit_id), type=type))

    def executions_of_day(
        self,
        days_ago: int = 0,
        *,
        date: dt.date | str | None = None,
        include_metrics: bool = False,
        tenant_id: str | None = None,
    ) -> list[Execution]:
        """
        List all runs of all flows of one day. The day is that of the tenant's time zone in Etlworks.

        :param days_ago: 0 is today, 1 is yesterday.
        :param date: the day, as a date or ``YYYY-MM-DD``, instead of ``days_ago``; for newer servers.
        :param include_metrics: whether ``raw`` has metrics, and ``exception`` the message of the error.
        :param tenant_id: another tenant, for super admins.
        :return: a list of ``Execution``, with what the report has of each.
        :raises EtlworksForbidden: it takes the role Administrator.
        :source: support pages, ``GET /v1/metrics/executions``.
        """
        if isinstance(date, datetime):
            date = date.date()
        elif isinstance(date, str):
            try:
                date = dt.date.fromisoformat(date.strip())
            except ValueError:
                raise EtlworksConfigError(f"date is {date!r}; it is a day such as '2026-05-31'.") from None
        return self.client.send(
            endpoints.executions_of_day(days_ago, date=date, include_metrics=include_metrics, tenant_id=tenant_id)
        )

    # --- Everything around them -----------------------------------------------------------------------------------

    def metrics_summary(self, window_hours: int = 24) -> MetricsSummary:
        """
        Read how many runs the last hours had, and how they ended.

        :param window_hours: how many hours back.
        :return: a ``MetricsSummary``: total, succeeded and failed, and durations in milliseconds.
        :raises EtlworksForbidden: the role does not allow it.
        :source: code examples, ``GET /v1/metrics/executions/summary``.
        """
        return self.client.send(endpoints.metrics_summary(window_hours))

    def health(self, *, all_nodes: bool = False) -> Health:
        """
        Read how the instance is. It takes no credentials; a proxy or an administrator may hide it.

        :param all_nodes: whether all nodes of a cluster are asked; what they answer is in ``raw``.
        :return: a ``Health``: the status, ``UP`` if all is well, and how many flows are running.
        :raises EtlworksError: it cannot be read, which does not prove that the instance is down.
        :source: support pages, ``GET /health``, below the bare host.
        """
        return self.client.send(endpoints.health(all_nodes=all_nodes))

    def audit_events(
        self,
        *,
        resource_type: str | None = None,
        since: datetime | str | None = None,
        with_exceptions: bool = False,
    ) -> Iterator[AuditEvent]:
        """
        List the audit log: who did what, and when.

        :param resource_type: only events of this kind of thing, such as ``flow``, if the release knows the filter.
        :param since: a datetime or ISO 8601; only events after it, if the release knows the filter.
        :param with_exceptions: whether failed events have the text of their error.
        :return: an iterator of ``AuditEvent``, asking for pages as they are needed; in some releases the last 1,000.
        :raises EtlworksForbidden: it takes the role Administrator.
        :source: code examples and "Get audit trail events API", ``GET /v1/audit``.
        """
        call = endpoints.audit_events(resource_type=resource_type, since=_iso(since), with_exceptions=with_exceptions)
        return self.client.iterate(call)

    def export_flows(self, flow_ids: int | str | Iterable[int | str], *, include_connections: bool = True) -> bytes:
        """
        Export flows, and the connections they use, as one bundle.

        :param flow_ids: the flows.
        :param include_connections: whether their connections are in it.
        :return: the bundle, as bytes. It is sensitive: keep it out of logs and XComs.
        :raises EtlworksNotFound: one of them does not exist.
        :source: code examples, ``POST /v1/io/export``.
        """
        return self.client.send(endpoints.export_flows(_ids(flow_ids), include_connections=include_connections))

    def preview_import(self, bundle: bytes) -> Any:
        """
        Ask what importing a bundle would change. Nothing is changed.

        :param bundle: what :meth:`export_flows` returned.
        :return: Etlworks's answer, whose shape is not documented.
        :raises EtlworksBadRequest: it is not a bundle.
        :source: code examples, ``POST /v1/io/import/preview``.
        """
        return self.client.send(endpoints.preview_import(bundle))

    def import_bundle(self, bundle: bytes) -> Any:
        """
        Import a bundle, byte for byte. Sent once only: it may have been applied if no answer came.

        :param bundle: what :meth:`export_flows` returned.
        :return: Etlworks's answer, whose shape is not documented.
        :raises EtlworksRefused: the answer says ``"success": false``; part of it may have been applied.
        :raises EtlworksUnreachable: no answer came; unless ``not_processed`` is set, it may have been applied.
        :source: code examples, ``POST /v1/io/import``.
        """
        return self.client.send(endpoints.import_bundle(bundle))

    def create_connection(
        self,
        connection: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        connection_type: str | None = None,
        properties: Mapping[str, Any] | None = None,
        tags: str | Iterable[str] | None = None,
    ) -> Connection:
        """
        Create a connection inside Etlworks (not one of Airflow's). Sent once.

        :param connection: all fields by Etlworks's names, as one mapping, instead of the following.
        :param name: its name.
        :param description: its description.
        :param connection_type: such as ``connection.db.postgres``.
        :param properties: its properties, by Etlworks's names. Write secrets as ``{{secret:name}}``.
        :param tags: its tags; a text is one tag.
        :return: the ``Connection``, with its id.
        :raises EtlworksBadRequest: a field is missing or wrong.
        :raises EtlworksConflict: the name is taken.
        :source: code examples, ``POST /v1/connections``.
        """
        body = _body(
            connection,
            name=name,
            description=description,
            connection_type=connection_type,
            properties=properties,
            tags=tags,
        )
        return self.client.send(endpoints.create_connection(body))

    def get_etlworks_connection(self, connection_id: int | str) -> Connection:
        """
        Read a connection inside Etlworks.

        :param connection_id: its id.
        :return: the ``Connection``. Its properties, in ``raw``, may hold secrets: keep them out of logs and XComs.
        :raises EtlworksNotFound: there is none.
        :source: code examples, ``GET /v1/connections/{id}``.
        """
        return self.client.send(endpoints.get_connection(parse_id("connection_id", connection_id)))

    def test_etlworks_connection(
        self,
        connection: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        connection_type: str | None = None,
        properties: Mapping[str, Any] | None = None,
        tags: str | Iterable[str] | None = None,
    ) -> Any:
        """
        Test a connection inside Etlworks. Nothing is saved.

        :param connection: all fields by Etlworks's names, as one mapping, instead of the following.
        :param name: its name.
        :param description: its description.
        :param connection_type: such as ``connection.db.postgres``.
        :param properties: its properties, by Etlworks's names. Write secrets as ``{{secret:name}}``.
        :param tags: its tags; a text is one tag.
        :return: Etlworks's answer, whose shape is not documented.
        :raises EtlworksRefused: the answer says ``"success": false``; the message has the reason.
        :source: code examples, ``POST /v1/connections/test``.
        """
        body = _body(
            connection,
            name=name,
            description=description,
            connection_type=connection_type,
            properties=properties,
            tags=tags,
        )
        return self.client.send(endpoints.test_connection(body))

    def create_schedule(
        self,
        schedule: Mapping[str, Any] | str | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        flow_id: int | str | None = None,
        enabled: bool | None = None,
        tags: str | Iterable[str] | None = None,
    ) -> Schedule:
        """
        Create a schedule. Sent once.

        :param schedule: a Quartz cron expression such as ``0 0 4 * * ?``, or minutes as text; or all fields by
            Etlworks's names, as one mapping, instead of the following.
        :param name: its name.
        :param description: its description.
        :param flow_id: the flow that it starts.
        :param enabled: whether it is on.
        :param tags: its tags; a text is one tag.
        :return: the ``Schedule``, with its id.
        :raises EtlworksBadRequest: a field is missing or wrong.
        :source: code examples, ``POST /v1/schedules``.
        """
        is_expression = isinstance(schedule, str)
        body = _body(
            None if is_expression else schedule,
            name=name,
            description=description,
            flow_id=None if flow_id is None else parse_id("flow_id", flow_id),
            schedule=schedule if is_expression else None,
            enabled=enabled,
            tags=tags,
        )
        return self.client.send(endpoints.create_schedule(body))

    def list_schedules(self, flow_id: int | str | None = None) -> Iterator[Schedule]:
        """
        List schedules.

        :param flow_id: only those of this flow. Etlworks always lists all, so they are picked here.
        :return: an iterator of ``Schedule``: when it starts which flow, whether it is on, its retries, and more.
        :raises EtlworksForbidden: it takes the role Editor.
        :source: support pages, "Schedules management API", ``GET /v1/schedules``.
        """
        wanted = None if flow_id is None else parse_id("flow_id", flow_id)
        listed = self.client.iterate(endpoints.list_schedules())
        return (schedule for schedule in listed if wanted in (None, schedule.flow_id))

    def pause_schedule(self, schedule_id: int | str) -> None:
        """
        Turn a schedule off. Pausing a paused schedule is not an error.

        :param schedule_id: the schedule.
        :raises EtlworksNotFound: there is none.
        :source: code examples, ``PUT /v1/schedules/{id}/disable``.
        """
        self.client.send(endpoints.pause_schedule(parse_id("schedule_id", schedule_id)))

    def resume_schedule(self, schedule_id: int | str) -> None:
        """
        Turn a schedule on. Resuming a schedule that is on is not an error.

        :param schedule_id: the schedule.
        :raises EtlworksNotFound: there is none.
        :source: code examples, ``PUT /v1/schedules/{id}/enable``.
        """
        self.client.send(endpoints.resume_schedule(parse_id("schedule_id", schedule_id)))

    def create_webhook(
        self,
        webhook: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        events: str | Iterable[str] | None = None,
        url: str | None = None,
        method: str | None = None,
        secret: str | None = None,
        flow_includes: Any = None,
        flow_excludes: Any = None,
        enabled: bool | None = None,
        content_type: str | None = None,
        include_entity: bool | None = None,
        headers: Sequence[Mapping[str, str]] | None = None,
        basic_user: str | None = None,
        basic_pass: str | None = None,
    ) -> Webhook:
        """
        Create a webhook: Etlworks calls its URL when something happens. Sent once.

        :param webhook: all fields by Etlworks's names, as one mapping, instead of the following.
        :param name: its name.
        :param description: its description.
        :param events: ``FLOW_FAILED`` and ``FLOW_SUCCESS``, or ``Flow.Executed`` and so on, depending on the release:
            passed on unchecked. A text is one event.
        :param url: what Etlworks calls; empty for a webhook that only sends e-mails.
        :param method: ``POST`` or ``GET``.
        :param secret: what Etlworks signs its calls with.
        :param flow_includes: the only flows whose events count.
        :param flow_excludes: flows whose events do not count.
        :param enabled: whether it is on.
        :param content_type: the type of what Etlworks sends.
        :param include_entity: whether Etlworks sends the changed thing, too.
        :param headers: headers of the call, each as ``{"key": …, "value": …}``.
        :param basic_user: the user of the call's Basic authentication.
        :param basic_pass: that user's password.
        :return: the ``Webhook``, with its id. It has neither ``secret`` nor ``basic_pass`` nor the values of headers,
            which Etlworks's answer repeats.
        :raises EtlworksForbidden: it takes the role Administrator.
        :raises EtlworksBadRequest: a field is missing or wrong.
        :source: code examples and "Webhooks API", ``POST /v1/webhooks``.
        """
        body = _body(
            webhook,
            name=name,
            description=description,
            events=events,
            url=url,
            method=method,
            secret=secret,
            flow_includes=flow_includes,
            flow_excludes=flow_excludes,
            enabled=enabled,
            content_type=content_type,
            include_entity=include_entity,
            headers=headers,
            basic_user=basic_user,
            basic_pass=basic_pass,
        )
        return self.client.send(endpoints.create_webhook(body))

    def send_to_listener(
        self,
        path: str,
        payload: bytes | Body | None = None,
        *,
        content_type: str = JSON_TYPE,
        method: str = "POST",
        query: Mapping[str, Any] | None = None,
        listener_conn_id: str | None = None,
    ) -> Any:
        """
        Send a payload to a user-defined endpoint, once: again only if no connection was made.

        :param path: the path that the flow's author chose, such as ``orders/new``.
        :param payload: what is sent; ``None`` is a request without a body. ``GET`` has none.
        :param content_type: its type.
        :param method: the listener's method: ``GET``, ``POST``, ``PUT`` or ``DELETE``.
        :param query: parameters of the URL, which logs can see.
        :param listener_conn_id: for a listener whose "Auth Type" is Basic: an Airflow connection whose Login and
            Password are sent. Without it, the token or key of this hook's connection is sent.
        :return: the author's own answer: JSON if it is JSON, else text. An ``auditId`` in it is the run that it
            started; a ``messageUuid`` finds it: ``get_execution(flow_id, message_uuid=…)``.
        :raises EtlworksNotFound: nobody listens there.
        :raises EtlworksUnreachable: no answer came; unless ``not_processed`` is set, it may have been received.
        :source: developer pages, "User-defined APIs", ``/v1/httplistener/{path}``.
        """
        basic = None if listener_conn_id is None else basic_credentials(self.get_connection(listener_conn_id))
        return self.client.send(
            endpoints.send_to_listener(path, payload, content_type, method=method, query=query, basic=basic)
        )

    def request(self, method: str, path: str, query: Mapping[str, Any] | None = None, json: Any = None) -> Any:
        """
        Make any other call, with the same log-in, retries and errors. ``POST`` and ``PATCH`` are sent once.

        :param method: the HTTP method.
        :param path: a percent-encoded path below ``/rest``, such as ``/v1/flows``, or an absolute URL of the same host,
            for ``/plugins/…`` and ``/etl/…``. ``v1/flows`` and ``/rest/v1/flows`` mean the same as ``/v1/flows``.
        :param query: parameters of the URL; a list repeats its name.
        :param json: the body; ``None`` sends none.
        :return: the answer as JSON if it is JSON, else text; ``None`` if it is empty.
        :raises EtlworksConfigError: the path is none, or the URL belongs to another host; nothing was sent.
        :raises EtlworksApiError: the server refused; the error's type says why.
        :source: quickstart, "The REST API".
        """
        return self.client.send(
            endpoints.request(method, path, query=query, json=json, root_url=self.settings.root_url)
        )


def _each(values: str | Iterable[str]) -> list[str]:
    """Return texts as a list. One text by itself is one item, not its letters."""
    return [values] if isinstance(values, str) else list(values)


def _ids(flow_ids: int | str | Iterable[int | str]) -> list[int]:
    given = flow_ids if isinstance(flow_ids, Iterable) and not isinstance(flow_ids, str) else [flow_ids]
    return [parse_id("flow_ids", each) for each in given]


def _body(mapping: Any, **fields: Any) -> Mapping[str, Any]:
    """Return the body of a creation: one mapping, or fields by their names in snake_case."""
    given = {
        re.sub("_(.)", lambda letter: letter[1].upper(), name): _each(value) if name in ("tags", "events") else value
        for name, value in fields.items()
        if value is not None
    }
    if mapping is None and given:
        return given
    if not isinstance(mapping, Mapping) or given:
        raise EtlworksConfigError("Give the fields as keyword arguments, or all of them as one mapping.")
    return mapping


def _iso(moment: datetime | str | None) -> str | None:
    return moment.isoformat() if isinstance(moment, datetime) else moment
