"""The trigger that follows one run of a flow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_etlworks.client.values import parse_seconds
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID
from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE, DEFAULT_POLL_INTERVAL
from airflow_provider_etlworks.runs.types import PollPolicy, RunRef
from airflow_provider_etlworks.triggerer.startup import import_in_thread, startup_delay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import timedelta

_FOLLOW_RUN = "airflow_provider_etlworks.triggerer.follow_run"


class EtlworksFlowExecutionTrigger(BaseTrigger):
    """
    Follows one run of a flow until it ends. It survives restarts of the triggerer, and every transient fault.

    It yields one event, always of the same shape (see
    :class:`~airflow_provider_etlworks.runs.events.ExecutionEvent`). ``ending`` is ``finished``, ``deadline``,
    ``lost_touch`` (the status could not be read for longer than the patience, or the record is gone; the run may still
    be going) or ``denied`` (the connection no longer works). It never starts a run.

    The arguments are a public contract: a trigger that an older release stored loads in a newer one.

    :param flow_id: the flow.
    :param audit_id: the run.
    :param etlworks_conn_id: the Airflow connection.
    :param poll_interval: seconds (or a ``timedelta``) between two polls of a young run; an old run is polled less
        often. Default 10. The first poll comes after one interval, 6 s at most; for a task, not before Airflow surely
        knows that the task has deferred (``[workers] min_heartbeat_interval`` and 2 s more). To each of these, up to a
        quarter is added at random, so that many triggers do not start in the same moment.
    :param deadline: Unix time of the last poll; ``None`` is never.
    :param cancel_on_kill: whether to stop the run at the deadline, and when a person marks or clears the task (from
        Airflow 3.3 on, which calls ``on_kill``). Before 3.3 a cancellation stops nothing: a deploy cancels, too.
    :param patience: seconds (or a ``timedelta``) for which the status may be unreadable. Default 1800.
    :param root_url: the address of the instance that has the run, as the connection named it when the task deferred. If
        the connection names another one by now, the run is neither followed nor stopped, and ``ending`` is ``denied``.
        Default: whatever the connection names.
    :param started_at: Unix time at which the task started the run, from which its age is counted. Default: what the
        run's record says.
    """

    def __init__(
        self,
        flow_id: int,
        audit_id: int,
        etlworks_conn_id: str = DEFAULT_CONN_ID,
        poll_interval: float | timedelta = DEFAULT_POLL_INTERVAL,
        deadline: float | None = None,
        cancel_on_kill: bool = True,
        patience: float | timedelta = DEFAULT_PATIENCE,
        root_url: str | None = None,
        started_at: float | None = None,
        **_from_other_releases: Any,
    ) -> None:
        super().__init__()
        self.flow_id = flow_id
        self.audit_id = audit_id
        self.etlworks_conn_id = etlworks_conn_id
        self.poll_interval = parse_seconds("poll_interval", poll_interval)
        self.deadline = deadline
        self.cancel_on_kill = cancel_on_kill
        self.patience = parse_seconds("patience", patience)
        self.root_url = root_url
        self.started_at = started_at

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments that make this trigger again."""
        return (
            "airflow_provider_etlworks.triggers.flow.EtlworksFlowExecutionTrigger",
            {
                "flow_id": self.flow_id,
                "audit_id": self.audit_id,
                "etlworks_conn_id": self.etlworks_conn_id,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "cancel_on_kill": self.cancel_on_kill,
                "patience": self.patience,
                **({} if self.root_url is None else {"root_url": self.root_url}),
                **({} if self.started_at is None else {"started_at": self.started_at}),
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Follow the run, and yield the one event."""
        await asyncio.sleep(startup_delay(self.poll_interval, for_task=self.task_instance is not None))
        module = await import_in_thread(_FOLLOW_RUN)
        try:
            event = await module.follow_run(
                RunRef(self.flow_id, self.audit_id),
                PollPolicy(self.poll_interval, self.patience, self.deadline, self.started_at),
                conn_id=self.etlworks_conn_id,
                root_url=self.root_url,
                cancel_on_kill=self.cancel_on_kill,
                log=self.log,
            )
        except asyncio.CancelledError:
            self.log.info("No longer following run %s here. The run goes on, unless it is stopped.", self.audit_id)
            raise
        yield TriggerEvent(event.to_payload())

    async def on_kill(self) -> None:
        """
        Stop the run: a person marked or cleared the task. Airflow 3.3 and later call this, earlier ones do not.

        Airflow also calls it when another triggerer has taken the trigger over. Then the task is still deferred, and
        the run goes on.
        """
        if not self.cancel_on_kill:
            self.log.info("The task was killed. Run %s goes on, since cancel_on_kill is off.", self.audit_id)
            return
        module = await import_in_thread(_FOLLOW_RUN)
        await module.stop_run(
            RunRef(self.flow_id, self.audit_id),
            conn_id=self.etlworks_conn_id,
            root_url=self.root_url,
            log=self.log,
            task_instance=self.task_instance,
        )
