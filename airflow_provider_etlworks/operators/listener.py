"""The operator that sends a payload to a listener and follows the run that it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.compat import conf
from airflow_provider_etlworks.operators.base import RunOperator
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID
from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE, DEFAULT_POLL_INTERVAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from airflow.sdk import Context

    from airflow_provider_etlworks.worker.send_to_listener import SendToListenerTask


class EtlworksHttpListenerOperator(RunOperator):
    """
    Send a payload to a user-defined endpoint of Etlworks and, if asked to, follow the run that it starts.

    The endpoint is ``httplistener/<path>``; the flow behind it is the author's own, and so may be the answer. If the
    answer is JSON with an ``auditId`` or a ``messageUuid``, and ``flow_id`` names the flow that listens, its run is
    followed as ``EtlworksRunFlowOperator`` follows one. A listener only fires if its flow is scheduled in Etlworks.

    A payload is sent once: again only if it certainly did not reach Etlworks. If that is in doubt, the task fails
    without a retry. From Airflow 3.3 on, a retry after a lost worker or a failed XCom does not send it again either:
    it follows the run that is going, or returns the answer of the earlier try. Before 3.3, Airflow keeps no record of
    an earlier try, and such a retry sends the payload again, unless the task was deferred. Set ``retries=0`` there if
    a payload must not come twice. A task that somebody clears sends its payload again.

    At most one of ``payload`` and ``payload_path`` is given; without both, the request has no body.

    :param path: the path that the flow's author chose, such as ``orders/new``. (templated)
    :param payload: text, sent as it is in UTF-8; or a dict or a list, sent as JSON. (templated)
    :param payload_path: a file to send, streamed: a local path or the URL of any object store. (templated)
    :param content_type: the payload's type. Default ``application/json``. (templated)
    :param method: the listener's method: ``GET``, ``POST``, ``PUT`` or ``DELETE``. ``GET`` has no payload.
    :param listener_conn_id: for a listener whose "Auth Type" is Basic: an Airflow connection of any type whose Login
        and Password are sent. Without it, the token or API key of ``etlworks_conn_id`` is sent (JWT), which also
        follows the run. (templated)
    :param flow_id: the flow that listens there; needed to follow its run. (templated)
    :param etlworks_conn_id: the Airflow connection. (templated)
    :param wait_for_completion: whether to follow the run to its end. Default ``False``.
    :param deferrable: wait in the triggerer, without holding a worker slot. Default: Airflow's
        ``[operators] default_deferrable``.
    :param poll_interval: seconds between two polls of a young run; an old run is polled less often, at least once a
        minute. A ``timedelta`` is taken, too, for this, ``timeout`` and ``patience``.
    :param timeout: seconds, counted from the task's start, after which the run is stopped and the task fails. Default:
        no limit.
    :param patience: seconds for which the run's status may be unreadable before the task fails.
    :param fail_on_warning: whether a run that ends with ``warning`` fails the task.
    :param cancel_on_kill: whether the run is stopped when the task is killed, cleared or timed out. While the task is
        deferred, this takes Airflow 3.3 or later.
    :param log_lines: how many lines of the flow's own log are copied into the task's log when the run ends badly; 0 is
        none.
    :return: without waiting ``{"message_uuid", "audit_id", "answer"}``: the ids of the message and of the run, or
        ``None``, and the answer: JSON if it is JSON that Airflow can store, else text, cut at 10,000 characters. When
        waiting, the dict of ``EtlworksRunFlowOperator``.
    :raises AirflowFailException: an argument or the connection cannot work; or the payload may have been received, and
        nothing more is known about it; or the run was canceled. Another try would not help, or could send it twice.
    :raises EtlworksApiError: Etlworks, or the flow, refused the payload.
    :raises EtlworksUnreachable: no connection was established; nothing was sent.
    :raises EtlworksExecutionFailed: the run ended badly.
    :raises EtlworksExecutionTimeout: the run was still going after ``timeout``; it was asked to stop.
    :raises EtlworksLostTouch: the status could not be read for longer than ``patience``; the run may still be going.
    """

    template_fields: Sequence[str] = (
        "path",
        "payload",
        "payload_path",
        "content_type",
        "flow_id",
        "etlworks_conn_id",
        "listener_conn_id",
    )
    template_fields_renderers = {"payload": "json"}  # noqa: RUF012  # as BaseOperator has it

    def __init__(
        self,
        *,
        path: str,
        payload: str | Mapping[str, Any] | Sequence[Any] | None = None,
        payload_path: Any = None,
        content_type: str = "application/json",
        method: str = "POST",
        listener_conn_id: str | None = None,
        flow_id: int | str | None = None,
        etlworks_conn_id: str = DEFAULT_CONN_ID,
        wait_for_completion: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | timedelta = DEFAULT_POLL_INTERVAL,
        timeout: float | timedelta | None = None,
        patience: float | timedelta = DEFAULT_PATIENCE,
        fail_on_warning: bool = False,
        cancel_on_kill: bool = True,
        log_lines: int = 200,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            etlworks_conn_id=etlworks_conn_id,
            wait_for_completion=wait_for_completion,
            deferrable=deferrable,
            poll_interval=poll_interval,
            timeout=timeout,
            patience=patience,
            fail_on_warning=fail_on_warning,
            cancel_on_kill=cancel_on_kill,
            log_lines=log_lines,
            **kwargs,
        )
        self.path = path
        self.payload = payload
        self.payload_path = payload_path
        self.content_type = content_type
        self.method = method
        self.listener_conn_id = listener_conn_id
        self.flow_id = flow_id
        if payload is not None and payload_path is not None:
            raise ValueError(f"{self.task_id}: give one of payload and payload_path, or none; both are given.")
        if wait_for_completion and flow_id is None:
            raise ValueError(
                f"{self.task_id}: wait_for_completion takes flow_id, the flow that listens at {path!r}: "
                "a run is read by its flow and the id in the answer."
            )

    def _new_task(self, context: Context) -> SendToListenerTask:
        from airflow_provider_etlworks.worker.send_to_listener import SendToListenerTask

        return SendToListenerTask(self, context)
