"""One execution of ``EtlworksHttpListenerOperator``: send the payload once, find the run that it started, follow it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from os import SEEK_END
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from airflow_provider_etlworks.client.endpoints import send_to_listener
from airflow_provider_etlworks.client.errors import EtlworksConfigError, EtlworksError, EtlworksStartUnknown
from airflow_provider_etlworks.client.models import as_id
from airflow_provider_etlworks.client.streaming import Body, FileBody
from airflow_provider_etlworks.compat import AirflowFailException
from airflow_provider_etlworks.hooks.clients import urgent_client
from airflow_provider_etlworks.hooks.connection import basic_credentials
from airflow_provider_etlworks.runs.find import RunSelector, find_message_run
from airflow_provider_etlworks.runs.outage import wait_out
from airflow_provider_etlworks.runs.types import RunRef
from airflow_provider_etlworks.storage import stored_file
from airflow_provider_etlworks.worker.arguments import fail_without_retry_on_config_error, parse_id
from airflow_provider_etlworks.worker.follow_run import RunArguments, RunTask
from airflow_provider_etlworks.worker.launch_record import LaunchRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow.sdk import Context

    from airflow_provider_etlworks.client.call import Call
    from airflow_provider_etlworks.client.procedure import Procedure
    from airflow_provider_etlworks.client.settings import ClientSettings
    from airflow_provider_etlworks.hooks.etlworks import EtlworksHook

LONGEST_ANSWER = 10_000
"""Characters of a listener's answer, as JSON, that a task returns at most."""

_LONGEST_MESSAGE_UUID = 200
# Airflow takes a mapping with these keys for a serialized object.
_RESERVED_KEYS = {"__classname__", "__id__", "__type", "__var"}
# The flow's id in the record, if the task does not know the flow.
_NO_FLOW = 0


class ListenerArguments(RunArguments, Protocol):
    """What the task needs of its operator."""

    path: str
    payload: str | Mapping[str, Any] | Sequence[Any] | None
    payload_path: Any
    content_type: str
    method: str
    listener_conn_id: str | None
    flow_id: int | str | None


def find_message_run_at_once(hook: EtlworksHook, flow_id: int, message_uuid: str) -> int | None:
    """
    Search for the run that a message to a listener started, in as little time as a killed task has.

    Uses connections of its own and short time-outs, so that it works while a signal has interrupted another call.

    :param hook: the hook of the connection.
    :param flow_id: the flow that listens.
    :param message_uuid: the message's id, from the listener's answer.
    :return: the run's audit id; ``None`` if there is none yet.
    :raises EtlworksError: Etlworks cannot be asked.
    """
    with urgent_client(hook.settings) as client:
        found = client.run(RunSelector(flow_id, message_uuid=message_uuid).find())
    return None if found is None else found.audit_id


class SendToListenerTask(RunTask):
    """One execution of ``EtlworksHttpListenerOperator``."""

    _operator: ListenerArguments

    def __init__(self, operator: ListenerArguments, context: Context) -> None:
        super().__init__(operator, context)
        self._flow_id = _NO_FLOW
        self._message_uuid: str | None = None
        self._audit_id: int | None = None

    def run(self) -> dict[str, Any]:
        """Send the payload and, if the task waits, follow the run that it starts."""
        with ExitStack() as opened:
            with fail_without_retry_on_config_error():
                if self._operator.flow_id is not None:
                    self._flow_id = parse_id("flow_id", self._operator.flow_id)
                    self.subject = replace(self.subject, flow_id=self._flow_id)
                settings = self.hook.settings
                call = send_to_listener(
                    self._operator.path,
                    self._body(opened),
                    self._operator.content_type,
                    method=self._operator.method,
                    basic=self._basic(),
                )
            record = self._earlier_record()
            if not self._operator.wait_for_completion:
                result = self._send(call, settings) if record is None else self._earlier_result(record)
                self.state.done()
                return result
            run = None if record is None else self._reattach(record)
            if run is None:
                run = self._find_run(self._send(call, settings))
        return self._follow(run)

    def _find_in_flight_run(self) -> RunRef | None:
        audit_id = self._audit_id if self._operator.wait_for_completion else None
        if audit_id is None and self._message_uuid is not None and self._operator.wait_for_completion:
            try:
                audit_id = find_message_run_at_once(self.hook, self._flow_id, self._message_uuid)
            except EtlworksError as error:
                self.log.warning("Cannot search for the run of message %s: %s", self._message_uuid, error)
        if audit_id is None:
            self.log.warning("The task was killed while it sent its payload. If that started a run, it goes on.")
            return None
        return RunRef(self._flow_id, audit_id)

    # --- Before it is sent ----------------------------------------------------------------------------------------

    def _basic(self) -> tuple[str, str] | None:
        """Return login and password for a listener with Basic authentication."""
        conn_id = self._operator.listener_conn_id
        return None if conn_id is None else basic_credentials(self.hook.get_connection(conn_id))

    def _body(self, opened: ExitStack) -> bytes | Body | None:
        payload, content_type = self._operator.payload, self._operator.content_type
        if self._operator.payload_path is not None:
            return opened.enter_context(_file_body(self._operator.payload_path))
        if payload is None:
            return None
        if isinstance(payload, (str, bytes)):
            return payload.encode() if isinstance(payload, str) else payload
        kind = type(payload).__name__
        if not isinstance(payload, (Mapping, Sequence)):
            raise EtlworksConfigError(f"payload is a {kind}; it must be text, or a dict or a list to send as JSON.")
        if "json" not in content_type.lower():
            raise EtlworksConfigError(
                f"payload is a {kind}, which is sent as JSON, but content_type is {content_type!r}. "
                "Give the text that is to be sent."
            )
        try:
            return json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise EtlworksConfigError(f"payload cannot be sent as JSON: {error}.") from error

    # --- The payload of an earlier try ----------------------------------------------------------------------------

    def _earlier_record(self) -> LaunchRecord | None:
        """Return what an earlier try recorded about the same payload, if that still counts."""
        record = self._records.load()
        if record is None or record.flow_id != self._flow_id:
            return None
        # The listener's answer is returned, also if it came from another instance.
        follows = self._operator.wait_for_completion or record.message_result is None
        if follows and self._is_elsewhere(record):
            return None
        # A task that was cleared sends its payload again; if the run is known, its state decides what happens to it.
        is_known = record.audit_id is not None and self._operator.wait_for_completion
        return None if self._was_cleared(record) and not is_known else record

    def _earlier_result(self, record: LaunchRecord) -> dict[str, Any]:
        """Return the result of an earlier try that sent the payload and failed later, such as at an XCom."""
        if record.message_result is None:
            self._fail_in_doubt()
        self.log.info("An earlier try sent the payload and got an answer. It is not sent again.")
        return record.message_result

    def _reattach(self, record: LaunchRecord) -> RunRef | None:
        """Return the run that an earlier try started, if it is to be followed."""
        if record.audit_id is not None:
            run = RunRef(record.flow_id, record.audit_id)
        elif record.message_result is None:
            self._fail_in_doubt()
        else:
            run = self._find_run(record.message_result)
        return run if self._should_follow(record, run) else None

    def _fail_in_doubt(self) -> NoReturn:
        self.metrics.start_in_doubt()
        raise AirflowFailException(
            "An earlier try was lost while it sent the payload, which may have been received, so it is not sent again. "
            "Check in Etlworks whether it was; clear the task to send it once more."
        )

    # --- The start ------------------------------------------------------------------------------------------------

    def _send(self, call: Call[Any], settings: ClientSettings) -> dict[str, Any]:
        """Send the payload. Return the answer, and the ids in it if there are any."""
        client, flow_id = self.hook.client, self._flow_id
        listening = "" if flow_id == _NO_FLOW else f", for flow {flow_id}"
        self.log.info("Sending a payload to %s at %s%s.", call, settings.root_url, listening)
        result = client.run(wait_out(lambda: self._send_once(call), self._outage("The payload is not sent yet")))
        self._message_uuid, self._audit_id = result["message_uuid"], result["audit_id"]
        self.log.info("The listener answered. Run: %s. Message: %s.", self._audit_id, self._message_uuid)
        self._records.update(message_result=result)
        return result

    def _send_once(self, call: Call[Any]) -> Procedure[dict[str, Any]]:
        """Send the payload. A retryable error means that it was certainly not received."""
        self._abort_if_killed()
        clock, max_tries = self.hook.client.clock, self._context["ti"].max_tries
        root_url = self.hook.settings.root_url
        self._records.save(LaunchRecord(self._flow_id, 0, clock.time(), max_tries, root_url=root_url))
        self.state.starting(0)
        self._abort_if_killed()
        try:
            return _message_result((yield call))
        except Exception as error:  # also errors that nobody foresees: a payload in doubt must not be sent again
            if isinstance(error, EtlworksError) and error.not_processed:
                self.state.idle()
                self._records.clear()
                raise
            self.metrics.start_in_doubt()
            raise AirflowFailException(
                f"{error} The payload may have been received, so it is not sent again. Check in Etlworks whether it "
                "was; clear the task to send it once more."
            ) from error

    def _followable_message(self, result: dict[str, Any]) -> str:
        message_uuid = result["message_uuid"]
        if message_uuid is None:
            raise AirflowFailException(
                "Etlworks took the payload, but its answer has no auditId and no messageUuid, so the run that it may "
                f"have started cannot be followed. The answer: {str(result['answer'])[:500]!r}. Let the flow at "
                f"{self._operator.path!r} answer with it, or set wait_for_completion=False."
            )
        return str(message_uuid)

    def _find_run(self, result: dict[str, Any]) -> RunRef:
        # An earlier release stored a result without the run.
        if (audit_id := result.get("audit_id")) is not None:
            self.state.starting(0)
            return self._accept(RunRef(self._flow_id, audit_id))
        client = self.hook.client
        message_uuid = self._message_uuid = self._followable_message(result)
        self.state.starting(0)
        patience = self._operator.patience
        try:
            found = client.run(
                find_message_run(self._flow_id, message_uuid, clock=client.clock, log=self.log, patience=patience)
            )
        except EtlworksStartUnknown as error:
            raise AirflowFailException(f"{error} The payload is not sent again.") from error
        return self._accept(RunRef(self._flow_id, found.audit_id))


@contextmanager
def _file_body(path: Any) -> Iterator[Body]:
    """Open a file as the body of a request, which reads it in chunks."""
    with stored_file("payload_path", path).open_read() as source:
        yield FileBody(source, source.seek(0, SEEK_END))


def _message_result(answer: Any) -> dict[str, Any]:
    found = answer.get("messageUuid") if isinstance(answer, dict) else None
    message_uuid = str(found) if isinstance(found, (str, int)) else ""
    is_id = 0 < len(message_uuid) <= _LONGEST_MESSAGE_UUID
    return {
        "message_uuid": message_uuid if is_id else None,
        "audit_id": as_id(answer.get("auditId")) if isinstance(answer, dict) else None,
        "answer": bounded_answer(answer),
    }


def bounded_answer(answer: Any) -> Any:
    """
    Return a listener's answer as a task returns it, so that Airflow can store it as an XCom.

    :param answer: the answer, as JSON or as text; the client has removed secrets and what cannot be stored.
    :return: the answer; as text if it has names that Airflow reserves; the first 10,000 characters of the text if it is
        longer.
    """
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    return text[:LONGEST_ANSWER] if len(text) > LONGEST_ANSWER or _has_reserved_key(answer) else answer


def _has_reserved_key(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(_RESERVED_KEYS & value.keys()) or any(map(_has_reserved_key, value.values()))
    return isinstance(value, list) and any(map(_has_reserved_key, value))
