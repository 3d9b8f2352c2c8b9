"""The hook: an Airflow connection becomes a client."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.call import JSON_TYPE
from airflow_provider_etlworks.client.errors import (
    EtlworksConfigError,
    EtlworksConflict,
    EtlworksError,
    EtlworksExecutionTimeout,
    EtlworksLostTouch,
    EtlworksNotFound,
)
from airflow_provider_etlworks.client.flow_selection import find_by_name
from airflow_provider_etlworks.client.models import (
    AuditEvent,
    Connection,
    Execution,
    Flow,
    FlowStart,
    FlowTask,
    MetricsSummary,
    Schedule,
    StartStatus,
    Webhook,
)
from airflow_provider_etlworks.compat import BaseHook
from airflow_provider_etlworks.hooks import clients
from airflow_provider_etlworks.hooks.connection import settings_from
from airflow_provider_etlworks.provider_info import (
    CONNECTION_FIELDS,
    CONNECTION_TYPE,
    DEFAULT_CONN_ID,
    FIELD_BEHAVIOUR,
)
from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE, DEFAULT_POLL_INTERVAL
from airflow_provider_etlworks.runs.follow import Ending, follow
from airflow_provider_etlworks.runs.start import RunStarter
from airflow_provider_etlworks.runs.stop import StopResult, stop_run
from airflow_provider_etlworks.runs.types import PollPolicy, RunRef

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
    from airflow_provider_etlworks.client.settings import ClientSettings
    from airflow_provider_etlworks.client.streaming import Body
    from airflow_provider_etlworks.client.sync import EtlworksClient


class EtlworksHook(BaseHook):
    """
    Talks to Etlworks with what an Airflow connection says.

    ``hook.client`` sends any call of :mod:`airflow_provider_etlworks.client.endpoints`; the methods here are what DAG
    authors do in ``@task`` functions. What fails raises an error of :mod:`airflow_provider_etlworks.client.errors`.

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

        return {
            name: StringField(each["label"], widget=BS3TextFieldWidget(), description=each["description"])
            for name, each in CONNECTION_FIELDS.items()
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return how the form shows the common fields, for Airflow before 3.2."""
        return {name.replace("-", "_"): value for name, value in FIELD_BEHAVIOUR.items()}

    @cached_property
    def settings(self) -> ClientSettings:
        """
        What the connection says, checked. Read once.

        :raises EtlworksConfigError: the connection cannot work; the message names the field.
        """
        return settings_from(self.get_connection(self.etlworks_conn_id))

    @cached_property
    def client(self) -> EtlworksClient:
        """The client of this connection, with one pool of TCP connections."""
        return clients.standard_client(self.settings)

    @cached_property
    def bundle_client(self) -> EtlworksClient:
        """A client like :attr:`client` that waits longer for an answer: Etlworks may work on a bundle for minutes."""
        return clients.bundle_client(self.settings)

    def get_conn(self) -> EtlworksClient:
        """Return :attr:`client`."""
        return self.client

    @asynccontextmanager
    async def async_client(self) -> AsyncIterator[AsyncEtlworksClient]:
        """Give a client for an event loop: ``async with hook.async_client() as client``."""
        from airflow_provider_etlworks.client.aio import AsyncEtlworksClient

        async with AsyncEtlworksClient(await self.read_settings()) as client:
            yield client

    async def read_settings(self) -> ClientSettings:
        """Read :attr:`settings` without holding the event loop: in Airflow, reading a connection is I/O."""
        from asgiref.sync import sync_to_async

        return await sync_to_async(lambda: self.settings)()

    def test_connection(self) -> tuple[bool, str]:
        """
        Try the connection: log in, and ask for the flows. Changes nothing.

        :return: whether it works, and a sentence for a person; within 15 s. Never raises what Etlworks causes.
        """
        try:
            settings = self.settings
            with clients.test_client(settings) as client:
                page = client.send(replace(endpoints.list_flows(), limit=1).first(), attempts=1)
        except EtlworksNotFound as error:
            return False, f"{error} Is Host the address of an Etlworks instance?"
        except EtlworksError as error:
            return False, str(error)
        who = f"as {settings.login}" if settings.login else "with an API key"
        count = page.total if page.total is not None else len(page.items)
        return True, f"Connected to {settings.root_url} {who}; {count} flows are visible."

    def execution_url(self, flow_id: int, audit_id: int) -> str:
        """
        Return where a person looks at a run.

        :param flow_id: the flow.
        :param audit_id: the run.
        :return: the connection's ``ui_url``, filled in; without one, the instance's address. Nothing is asked.
        :source: Etlworks documents no address of a single run.
        """
        return self.settings.execution_url(flow_id, audit_id)

    # --- Flows and their runs -------------------------------------------------------------------------------------

    def list_flows(
        self,
        *,
        q: str | None = None,
        tags: Sequence[str] = (),
        sort: str | None = None,
        since: datetime | str | None = None,
    ) -> Iterator[Flow]:
        """
        List flows, without the parts that only :meth:`get_flow` tells.

        :param q: only flows with this text in their name.
        :param tags: only flows with all these tags.
        :param sort: Etlworks's name of the field to sort by, ``-`` before it for descending.
        :param since: a datetime or ISO 8601; only flows changed after it.
        :return: an iterator of ``Flow``: id, name, tags, how many schedules are on and off, and more.
        :raises EtlworksForbidden: the role does not allow it.
        :source: REST quickstart, ``GET /v1/flows`` and "Filtering".
        """
        return self.client.iterate(endpoints.list_flows(q=q, tags=tags, sort=sort, since=_iso(since)))

    def get_flow(self, flow_id: int) -> Flow:
        """
        Read one whole flow.

        :param flow_id: the flow.
        :return: a ``Flow``; ``raw`` has all of it, such as transformations and connections.
        :raises EtlworksNotFound: there is none, or this user cannot see it.
        :source: code examples, ``GET /v1/flows/{id}``.
        """
        return self.client.send(endpoints.get_flow(flow_id))

    def find_flow(self, name: str) -> Flow:
        """
        Find the one flow with exactly this name, case included. All flows are listed for that.

        :param name: the name.
        :return: a ``Flow``, as :meth:`list_flows` gives it.
        :raises EtlworksConfigError: none, or more than one, has it; the message lists candidates.
        :source: quickstart, ``GET /v1/flows``.
        """
        return find_by_name(name, list(self.list_flows()))

    def replace_flow(self, flow_id: int, flow: Mapping[str, Any]) -> Flow:
        """
        Replace a whole flow. What ``flow`` lacks is wiped: :meth:`update_flow` changes single fields.

        :param flow_id: the flow.
        :param flow: all of it, by Etlworks's names: what :meth:`get_flow` has in ``raw``, changed.
        :return: the ``Flow`` as it is now.
        :raises EtlworksConflict: somebody else changed it since it was read, or the name is taken.
        :raises EtlworksForbidden: it takes the role Editor.
        :source: code examples, ``PUT /v1/flows/{id}``.
        """
        return self.client.send(endpoints.replace_flow(flow_id, flow))

    def update_flow(self, flow_id: int, changes: Mapping[str, Any]) -> Flow:
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
        return self._changed(flow_id, lambda _: changes)

    def tag_flows(self, flow_ids: Sequence[int], add: Sequence[str] = (), remove: Sequence[str] = ()) -> list[Flow]:
        """
        Add and remove tags of flows, and keep their other tags, also those that somebody else adds meanwhile.

        :param flow_ids: the flows. Those that need no change are not written.
        :param add: tags to add.
        :param remove: tags to remove.
        :return: each ``Flow`` as it is now.
        :raises EtlworksConflict: a flow was changed twice while its tags were.
        :raises EtlworksForbidden: it takes the role Editor.
        :source: code examples, "Bulk tag flows".
        """

        def retag(flow: Flow) -> Mapping[str, Any]:
            kept = [tag for tag in flow.tags if tag not in remove]
            tags = [*kept, *(tag for tag in dict.fromkeys(add) if tag not in kept)]
            return {} if tags == list(flow.tags) else {"tags": tags}

        return [self._changed(flow_id, retag) for flow_id in flow_ids]

    def _changed(self, flow_id: int, change: Callable[[Flow], Mapping[str, Any]]) -> Flow:
        """Change what ``change`` says of the flow as it is, and ask it again where the flow has changed since."""
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
        flow_id: int,
        parameters: Mapping[str, str] | None = None,
        *,
        run_options: Mapping[str, Any] | None = None,
        is_only_starter: bool = True,
    ) -> FlowStart:
        """
        Start a flow, once. A start in doubt is reconciled with the flow's runs before anything is sent again.

        :param flow_id: the flow.
        :param parameters: the flow's parameters, all of them text.
        :param run_options: parameters of the start's URL, such as the one that allows parallel runs.
        :param is_only_starter: whether nobody else starts this flow at the same time. If so, and without
            ``run_options``, the only new run is adopted after a start in doubt, unless it shows another starter. Say
            ``False`` in mapped tasks. The connection's ``run_key_parameter`` gives proof instead.
        :return: a ``FlowStart``, with the run's ``audit_id``.
        :raises EtlworksAlreadyRunning: another run of the flow is going; nothing was started.
        :raises EtlworksStartUnknown: the start is in doubt, and no run can be matched to it.
        :raises EtlworksForbidden: it takes the role Operator.
        :source: quickstart, ``POST /v1/flows/{id}/run``.
        """
        start = RunStarter(
            flow_id=flow_id,
            clock=self.client.clock,
            log=self.log,
            parameters=dict(parameters or {}),
            options=dict(run_options or {}),
            user=self.settings.login,
            is_only_starter=is_only_starter and not run_options,
            run_key_parameter=self.settings.run_key_parameter,
        )
        started = self.client.run(start.start())
        audit_id = started.audit_id if started else None
        return FlowStart(flow_id=flow_id, audit_id=audit_id, status=StartStatus.STARTED, status_code=0)

    def get_execution(
        self,
        flow_id: int,
        audit_id: int | None = None,
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
        :return: an ``Execution``; ``None`` where there is no such run yet.
        :raises EtlworksNotFound: there is no run with this audit id.
        :raises EtlworksConfigError: more than one of the three is given.
        :source: quickstart, ``GET /v1/executions/{flowId}``.
        """
        if sum(each is not None for each in (audit_id, status, message_uuid)) > 1:
            raise EtlworksConfigError("Give one of audit_id, status and message_uuid, or none for the newest run.")
        if audit_id is None:
            return self.client.send(endpoints.latest_execution(flow_id, status=status, message_uuid=message_uuid))
        return self.client.send(endpoints.get_execution(flow_id, audit_id))

    def wait_for_execution(
        self,
        flow_id: int,
        audit_id: int,
        *,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        timeout: float | None = None,
        patience: float = DEFAULT_PATIENCE,
    ) -> Execution:
        """
        Wait until a run has ended, well or badly.

        :param flow_id: the flow.
        :param audit_id: the run.
        :param poll_interval: seconds between two looks at a young run; an old one is looked at less often.
        :param timeout: seconds to wait at most; ``None`` is for ever.
        :param patience: seconds for which the status may be unreadable.
        :return: the run's last ``Execution``; its ``status`` says how it ended.
        :raises EtlworksExecutionTimeout: it is still going.
        :raises EtlworksLostTouch: its status could not be read for too long.
        :raises EtlworksForbidden: the role does not allow to read runs.
        :source: quickstart, ``GET /v1/executions/{flowId}?auditId=``.
        """
        deadline = None if timeout is None else self.client.clock.time() + timeout
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
        raise EtlworksLostTouch(f"Run {audit_id} of flow {flow_id} may still be going. {followed.detail}")

    def stop_flow(self, flow_id: int, audit_id: int) -> StopResult:
        """
        Ask Etlworks to stop a run. It may take minutes until the run has really stopped.

        Uses connections of its own and short time-outs, so that it works while a signal has interrupted another call.

        :param flow_id: the flow.
        :param audit_id: the run.
        :return: a ``StopResult``: whether Etlworks accepted, and a sentence for a person. Nothing that
            Etlworks causes is raised.
        :source: the connection's ``stop_path``, an assumption; support pages tell that runs can be stopped.
        """
        with clients.urgent_client(self.settings) as client:
            return client.run(stop_run(RunRef(flow_id, audit_id), self.settings.stop_path))

    def execution_history(self, flow_id: int, *, since: datetime | str | None = None) -> Iterator[Execution]:
        """
        List a flow's runs, newest first (an assumption), asking for pages as they are needed.

        :param flow_id: the flow.
        :param since: a datetime or ISO 8601; only runs after it, where the server knows the filter.
        :return: an iterator of ``Execution``.
        :raises EtlworksNotFound: there is no such flow.
        :source: quickstart, ``GET /v1/executions/{flowId}/history``.
        """
        return self.client.iterate(endpoints.execution_history(flow_id, since=_iso(since)))

    def execution_log(self, flow_id: int, audit_id: int, *, last_lines: int | None = None) -> str:
        """
        Read the log of a run.

        :param flow_id: the flow.
        :param audit_id: the run.
        :param last_lines: only so many lines from its end; a long log is then never held in memory.
        :return: the text.
        :raises EtlworksNotFound: there is no such run.
        :source: support pages, ``GET /v1/executions/console/download``.
        """
        from airflow_provider_etlworks.client.streaming import tail_lines

        call = endpoints.execution_log(flow_id, audit_id)
        if last_lines is None:
            return self.client.send(call)
        with self.client.stream(call) as pieces:
            return "\n".join(tail_lines(pieces, last_lines))

    def execution_tasks(self, audit_id: int, *, type: str | None = None) -> list[FlowTask]:  # noqa: A002  # Etlworks's name
        """
        List the tasks inside a run.

        :param audit_id: the run.
        :param type: only ``stream``, ``extract``, ``load``, ``task`` or ``hwm``.
        :return: a list of ``FlowTask``: name, type, start, duration in milliseconds, records.
        :raises EtlworksForbidden: it takes the role Administrator.
        :raises EtlworksNotFound: there is no such run.
        :source: support pages, ``GET /etl/rest/v1/tasks/{auditId}/``, below the bare host.
        """
        return self.client.send(endpoints.execution_tasks(audit_id, type=type))

    def executions_of_day(self, days_ago: int = 0) -> list[Execution]:
        """
        List all runs of all flows of one day.

        :param days_ago: 0 is today, 1 is yesterday.
        :return: a list of ``Execution``, with what the report has of each.
        :raises EtlworksForbidden: it takes the role Administrator.
        :source: support pages, ``GET /v1/metrics/executions``.
        """
        return self.client.send(endpoints.executions_of_day(days_ago))

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

    def audit_events(
        self, *, resource_type: str | None = None, since: datetime | str | None = None
    ) -> Iterator[AuditEvent]:
        """
        List the audit log: who changed what, and when.

        :param resource_type: only events of this kind of thing, such as ``flow``.
        :param since: a datetime or ISO 8601; only events after it.
        :return: an iterator of ``AuditEvent``, asking for pages as they are needed.
        :raises EtlworksForbidden: it takes the role Administrator.
        :source: code examples, ``GET /v1/audit``.
        """
        return self.client.iterate(endpoints.audit_events(resource_type=resource_type, since=_iso(since)))

    def export_flows(self, flow_ids: Sequence[int], *, include_connections: bool = True) -> bytes:
        """
        Export flows, and the connections they use, as one bundle.

        :param flow_ids: the flows.
        :param include_connections: whether their connections are in it.
        :return: the bundle, as bytes. It is sensitive: keep it out of logs and XComs.
        :raises EtlworksNotFound: one of them does not exist.
        :source: code examples, ``POST /v1/io/export``.
        """
        return self.client.send(endpoints.export_flows(flow_ids, include_connections=include_connections))

    def preview_import(self, bundle: bytes) -> Any:
        """
        Ask what importing a bundle would change. Nothing is changed.

        :param bundle: what :meth:`export_flows` returned.
        :return: Etlworks's answer, whose shape is not documented.
        :raises EtlworksBadRequest: it is no bundle.
        :source: code examples, ``POST /v1/io/import/preview``.
        """
        return self.client.send(endpoints.preview_import(bundle))

    def import_bundle(self, bundle: bytes) -> Any:
        """
        Import a bundle, byte for byte. Sent once only: it may have been applied where no answer came.

        :param bundle: what :meth:`export_flows` returned.
        :return: Etlworks's answer, whose shape is not documented.
        :raises EtlworksRefused: the answer says ``"success": false``; part of it may have been applied.
        :raises EtlworksUnreachable: no answer came; unless ``not_processed`` is set, it may have been applied.
        :source: code examples, ``POST /v1/io/import``.
        """
        return self.client.send(endpoints.import_bundle(bundle))

    def create_connection(self, connection: Mapping[str, Any]) -> Connection:
        """
        Create a connection inside Etlworks (not one of Airflow's). Sent once.

        :param connection: ``name description connectionType properties tags``. Write secrets as ``{{secret:name}}``.
        :return: the ``Connection``, with its id.
        :raises EtlworksBadRequest: a field is missing or wrong.
        :raises EtlworksConflict: the name is taken.
        :source: code examples, ``POST /v1/connections``.
        """
        return self.client.send(endpoints.create_connection(connection))

    def get_etlworks_connection(self, connection_id: int) -> Connection:
        """
        Read a connection inside Etlworks.

        :param connection_id: its id.
        :return: the ``Connection``. Its properties, in ``raw``, may hold secrets: keep them out of logs and XComs.
        :raises EtlworksNotFound: there is none.
        :source: code examples, ``GET /v1/connections/{id}``.
        """
        return self.client.send(endpoints.get_connection(connection_id))

    def test_etlworks_connection(self, connection: Mapping[str, Any]) -> Any:
        """
        Test a connection inside Etlworks. Nothing is saved.

        :param connection: as for :meth:`create_connection`.
        :return: Etlworks's answer, whose shape is not documented.
        :raises EtlworksRefused: the answer says ``"success": false``; the message has the reason.
        :source: code examples, ``POST /v1/connections/test``.
        """
        return self.client.send(endpoints.test_connection(connection))

    def create_schedule(self, schedule: Mapping[str, Any]) -> Schedule:
        """
        Create a schedule. Sent once.

        :param schedule: ``name description flowId schedule enabled tags``; ``schedule`` is like ``0 0 4 * * ?``.
        :return: the ``Schedule``, with its id.
        :raises EtlworksBadRequest: a field is missing or wrong.
        :source: code examples, ``POST /v1/schedules``.
        """
        return self.client.send(endpoints.create_schedule(schedule))

    def list_schedules(self, flow_id: int) -> Iterator[Schedule]:
        """
        List a flow's schedules.

        :param flow_id: the flow.
        :return: an iterator of ``Schedule``.
        :source: ``GET /v1/schedules?flowId=``, an assumption.
        """
        return self.client.iterate(endpoints.list_schedules(flow_id))

    def pause_schedule(self, schedule_id: int) -> None:
        """
        Turn a schedule off. Pausing what is paused is no error.

        :param schedule_id: the schedule.
        :raises EtlworksNotFound: there is none.
        :source: code examples, ``PUT /v1/schedules/{id}/disable``.
        """
        self.client.send(endpoints.pause_schedule(schedule_id))

    def resume_schedule(self, schedule_id: int) -> None:
        """
        Turn a schedule on. Resuming what is on is no error.

        :param schedule_id: the schedule.
        :raises EtlworksNotFound: there is none.
        :source: code examples, ``PUT /v1/schedules/{id}/enable``.
        """
        self.client.send(endpoints.resume_schedule(schedule_id))

    def create_webhook(self, webhook: Mapping[str, Any]) -> Webhook:
        """
        Create a webhook: Etlworks calls its URL when something happens. Sent once.

        :param webhook: ``name description events url method secret flowIncludes flowExcludes enabled``; events are
            ``FLOW_FAILED`` and ``FLOW_SUCCESS``, or ``Flow.Executed`` and so on, depending on the release.
        :return: the ``Webhook``, with its id.
        :raises EtlworksForbidden: it takes the role Administrator.
        :raises EtlworksBadRequest: a field is missing or wrong.
        :source: code examples, ``POST /v1/webhooks``.
        """
        return self.client.send(endpoints.create_webhook(webhook))

    def send_to_listener(self, path: str, payload: bytes | Body | None = None, *, content_type: str = JSON_TYPE) -> Any:
        """
        Send a payload to a user-defined endpoint, once: again only where it certainly did not reach Etlworks.

        :param path: the path that the flow's author chose, such as ``orders/new``.
        :param payload: what is sent; ``None`` is a request without a body.
        :param content_type: its type.
        :return: the author's own answer: JSON where it is JSON, else text. A ``messageUuid`` in it finds the run that
            it started: ``get_execution(flow_id, message_uuid=…)``.
        :raises EtlworksNotFound: nobody listens there.
        :raises EtlworksUnreachable: no answer came; unless ``not_processed`` is set, it may have been received.
        :source: support pages, ``POST /v1/httplistener/{path}``.
        """
        return self.client.send(endpoints.send_to_listener(path, payload, content_type))

    def request(self, method: str, path: str, query: Mapping[str, Any] | None = None, json: Any = None) -> Any:
        """
        Make any other call, with the same log-in, retries and errors. ``POST`` and ``PATCH`` are sent once.

        :param method: the HTTP method.
        :param path: a percent-encoded path below ``/rest``, such as ``/v1/flows``, or an absolute URL of the same host,
            for ``/plugins/…`` and ``/etl/…``.
        :param query: parameters of the URL; a list repeats its name.
        :param json: the body; ``None`` sends none.
        :return: the answer as JSON where it is JSON, else text; ``None`` where it is empty.
        :raises EtlworksConfigError: the path is none, or the URL belongs to another host; nothing was sent.
        :raises EtlworksApiError: the server refused; the kind of error tells why.
        :source: quickstart, "The REST API".
        """
        return self.client.send(
            endpoints.request(method, path, query=query, json=json, root_url=self.settings.root_url)
        )


def _iso(moment: datetime | str | None) -> str | None:
    return moment.isoformat() if isinstance(moment, datetime) else moment
