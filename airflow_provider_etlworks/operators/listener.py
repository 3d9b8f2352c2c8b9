"""The operator that sends a payload to a listener and follows the run that it starts."""

from __future__ import annotations

from contextlib import contextmanager
from os import SEEK_END
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.compat import AirflowFailException, conf
from airflow_provider_etlworks.operators.base import RunOperator
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID
from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE, DEFAULT_POLL_INTERVAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from contextlib import ExitStack

    from airflow.sdk import Context

    from airflow_provider_etlworks.client.call import Call
    from airflow_provider_etlworks.client.streaming import Body
    from airflow_provider_etlworks.runs.start import Started
    from airflow_provider_etlworks.worker.launch_record import LaunchRecord, LaunchRecordStore

LONGEST_ANSWER = 10_000
"""Characters of a listener's answer, as JSON, that a task tells at most."""


class EtlworksHttpListenerOperator(RunOperator):
    """
    Send a payload to a user-defined endpoint of Etlworks and, if asked to, follow the run that it starts.

    The endpoint is ``httplistener/<path>``; the flow behind it is the author's own, and so is the answer. Where the
    answer is JSON with a ``messageUuid``, and ``flow_id`` names the flow that listens, its run is followed as
    ``EtlworksRunFlowOperator`` follows one.

    A payload is sent once: again only where it certainly did not reach Etlworks. Where that cannot be told, the task
    fails without a retry. A retry after a lost worker follows the run that is already going, where it waits and
    Airflow is 3.3 or later; otherwise it sends the payload again, unless the task was deferred.

    At most one of ``payload`` and ``payload_path`` is given; without both, the request has no body.

    :param path: the path that the flow's author chose, such as ``orders/new``. (templated)
    :param payload: text, sent as it is in UTF-8; or a dict or a list, sent as JSON. (templated)
    :param payload_path: a file to send, streamed: a local path or the URL of any object store. (templated)
    :param content_type: the payload's type. Default ``application/json``. (templated)
    :param flow_id: the flow that listens there; needed to follow its run. (templated)
    :param etlworks_conn_id: the Airflow connection. (templated)
    :param wait_for_completion: whether to follow the run to its end. Default ``False``.
    :param deferrable: wait in the triggerer, without holding a worker slot. Default: Airflow's
        ``[operators] default_deferrable``.
    :param poll_interval: seconds between two looks at the run; an old run is looked at less often, every 60 s at most.
    :param timeout: seconds, counted from the task's start, after which the run is stopped and the task fails. Default:
        no limit.
    :param patience: seconds for which the run's status may be unreadable before the task gives up watching.
    :param fail_on_warning: whether a run that ends with ``warning`` fails the task.
    :param cancel_on_kill: whether the run is stopped when the task is killed, cleared or timed out. While the task is
        deferred, this takes Airflow 3.3 or later.
    :param log_lines: how many lines of the flow's own log are copied into the task's log when the run ends badly; 0 is
        none.
    :return: without waiting ``{"message_uuid", "answer"}``: the message's id or ``None``, and the answer as JSON where
        it is JSON, else text, cut at 10,000 characters. When waiting, the dict of ``EtlworksRunFlowOperator``.
    :raises AirflowFailException: an argument or the connection cannot work; or the payload may have been received, and
        nothing more can be told about it; or the run was canceled. Another try would not help, or could send it twice.
    :raises EtlworksApiError: Etlworks, or the flow, refused the payload.
    :raises EtlworksUnreachable: no connection came to be; nothing was sent.
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
    )
    template_fields_renderers = {"payload": "json"}  # noqa: RUF012  # as BaseOperator has it

    def __init__(
        self,
        *,
        path: str,
        payload: str | Mapping[str, Any] | Sequence[Any] | None = None,
        payload_path: Any = None,
        content_type: str = "application/json",
        flow_id: int | str | None = None,
        etlworks_conn_id: str = DEFAULT_CONN_ID,
        wait_for_completion: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        timeout: float | None = None,
        patience: float = DEFAULT_PATIENCE,
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
        self.flow_id = flow_id
        self._message: tuple[int, str] | None = None
        if payload is not None and payload_path is not None:
            raise ValueError(f"{self.task_id}: give one of payload and payload_path, or none; both are given.")
        if wait_for_completion and flow_id is None:
            raise ValueError(
                f"{self.task_id}: wait_for_completion takes flow_id, the flow that listens at {path!r}: "
                "a run is found by its flow and the message's id."
            )

    # --- Airflow calls these --------------------------------------------------------------------------------------

    def execute(self, context: Context) -> dict[str, Any]:
        """Send the payload, and follow the run that it starts."""
        from contextlib import ExitStack

        from airflow_provider_etlworks.client.endpoints import send_to_listener
        from airflow_provider_etlworks.worker.arguments import fail_without_retry_on_config_error, parse_id

        with ExitStack() as opened:
            with fail_without_retry_on_config_error():
                flow_id = None if self.flow_id is None else parse_id("flow_id", self.flow_id)
                call = send_to_listener(self.path, self._body(opened), self.content_type)
                url = self.hook.settings.root_url
            if flow_id is None or not self.wait_for_completion:
                self.log.info("Sending a payload to %s at %s.", call, url)
                message_uuid, answer = self._send(call)
                return {"message_uuid": message_uuid, "answer": answer}
            memory = self._memory = self._memory_of(context)
            started = self._reattach(context, memory, flow_id)
            if started is None:
                self.log.info("Sending a payload to %s at %s, for flow %s.", call, url, flow_id)
                started = self._start(context, memory, flow_id, call)
        return self._follow(context, flow_id, started)

    def _find_in_flight_run(self) -> tuple[int, int] | None:
        from airflow_provider_etlworks.client.errors import EtlworksError

        if self._message is None:
            return None
        flow_id, message_uuid = self._message
        try:
            audit_id = self.hook.find_run_of_message(flow_id, message_uuid) if message_uuid else None
        except EtlworksError as error:
            self.log.warning("Cannot look for the run of message %s: %s", message_uuid, error)
            audit_id = None
        if audit_id is None:
            self.log.warning("The task was killed while it sent its payload. If that started a run, it goes on.")
            return None
        return flow_id, audit_id

    # --- Before the run -------------------------------------------------------------------------------------------

    def _body(self, opened: ExitStack) -> bytes | Body | None:
        import json
        from collections.abc import Mapping, Sequence

        from airflow_provider_etlworks.client.errors import EtlworksConfigError

        if self.payload_path is not None:
            return opened.enter_context(_file_body(self.payload_path))
        if self.payload is None:
            return None
        if isinstance(self.payload, (str, bytes)):
            return self.payload.encode() if isinstance(self.payload, str) else self.payload
        if not isinstance(self.payload, (Mapping, Sequence)):
            raise EtlworksConfigError(
                f"payload is a {type(self.payload).__name__}; it must be text, or a dict or a list to send as JSON."
            )
        if "json" not in self.content_type.lower():
            raise EtlworksConfigError(
                f"payload is a {type(self.payload).__name__}, which is sent as JSON, but content_type is "
                f"{self.content_type!r}. Give the text that is to be sent."
            )
        try:
            return json.dumps(self.payload, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise EtlworksConfigError(f"payload cannot be sent as JSON: {error}.") from error

    # --- The start ------------------------------------------------------------------------------------------------

    def _send(self, call: Call[Any]) -> tuple[str | None, Any]:
        """Send the payload, and return the message's id, where the answer has one, and what to tell of the answer."""
        from airflow_provider_etlworks.client.errors import EtlworksError

        try:
            answer = self.hook.client.send(call)
        except EtlworksError as error:
            if error.not_processed:
                raise
            raise AirflowFailException(
                f"{error} The payload may have been received, so it is not sent again. Look in Etlworks whether it "
                "was; clear the task to send it once more."
            ) from error
        found = answer.get("messageUuid") if isinstance(answer, dict) else None
        message_uuid = str(found) if isinstance(found, (str, int)) and str(found) else None
        self.log.info("The listener answered. Message: %s.", message_uuid)
        return message_uuid, bounded_answer(answer, self.hook.settings.secrets)

    def _start(self, context: Context, memory: LaunchRecordStore, flow_id: int, call: Call[Any]) -> Started:
        """Send the payload, and find the run that it started."""
        from airflow_provider_etlworks.client.errors import EtlworksError

        self._abort_if_killed()
        memory.save(self._remembered(context, flow_id))
        self._message = (flow_id, "")
        try:
            message_uuid, answer = self._send(call)
        except EtlworksError:
            self._message = None
            memory.clear()
            raise
        if message_uuid is None:
            raise AirflowFailException(
                f"Etlworks took the payload, but its answer has no messageUuid, so the run that it may have started "
                f"cannot be followed. The answer: {str(answer)[:500]!r}. Let the flow at {self.path!r} answer with it, "
                "or set wait_for_completion=False."
            )
        memory.update(message_uuid=message_uuid)
        self._message = (flow_id, message_uuid)
        return self._run_of_message(memory, flow_id, message_uuid)

    def _run_of_message(self, memory: LaunchRecordStore, flow_id: int, message_uuid: str) -> Started:
        from airflow_provider_etlworks.client.errors import EtlworksStartUnknown
        from airflow_provider_etlworks.runs.find import find_message_run

        client = self.hook.client
        try:
            run = client.run(
                find_message_run(flow_id, message_uuid, clock=client.clock, log=self.log, patience=self.patience)
            )
        except EtlworksStartUnknown as error:
            raise AirflowFailException(f"{error} The payload is not sent again.") from error
        self._run, self._message = (flow_id, run.audit_id), None
        memory.update(audit_id=run.audit_id)
        if self._killed and self._stopped != run.audit_id:
            self.on_kill()
        self._abort_if_killed()
        return self._started(run.audit_id)

    def _remembered(self, context: Context, flow_id: int) -> LaunchRecord:
        from airflow_provider_etlworks.worker.launch_record import LaunchRecord

        now = self.hook.client.clock.time()
        return LaunchRecord(flow_id, watermark=0, asked_at=now, max_tries=context["ti"].max_tries)

    def _reattach(self, context: Context, memory: LaunchRecordStore, flow_id: int) -> Started | None:
        """Return the run that an earlier try of this task started, where it is to be followed."""
        remembered = memory.load()
        if remembered is None or remembered.flow_id != flow_id:
            return None
        cleared = remembered.max_tries != context["ti"].max_tries
        audit_id = remembered.audit_id
        if audit_id is None:
            if cleared:
                return None
            if remembered.message_uuid is None:
                raise AirflowFailException(
                    "An earlier try was lost while it sent the payload, which may have been received, so it is not "
                    "sent again. Look in Etlworks whether it was; clear the task to send it once more."
                )
            audit_id = self._run_of_message(memory, flow_id, remembered.message_uuid).audit_id
        self._run = (flow_id, audit_id)
        if self._is_to_be_followed(context, remembered, audit_id):
            return self._started(audit_id)
        self._run = None
        return None


@contextmanager
def _file_body(path: Any) -> Iterator[Body]:
    """Open a file as the body of a request, which reads it in pieces."""
    from airflow_provider_etlworks.client.streaming import FileBody
    from airflow_provider_etlworks.storage import stored_file

    with stored_file("payload_path", path).open_read() as source:
        yield FileBody(source, source.seek(0, SEEK_END))


def bounded_answer(answer: Any, secrets: Iterable[str] = ()) -> Any:
    """
    Return what a task tells of a listener's answer: the answer itself, or its first 10,000 characters as text.

    :param answer: the answer, as JSON or as text.
    :param secrets: the connection's own, which no XCom may contain.
    """
    import json

    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    for secret in secrets:
        if secret and secret in text:
            text = answer = text.replace(secret, "***")
    return answer if len(text) <= LONGEST_ANSWER else text[:LONGEST_ANSWER]
