"""What ``airflow etlworks …`` does. Airflow imports this when one of the commands runs."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from datetime import datetime
from enum import IntEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from airflow_provider_etlworks.adoption.airflow_times import airflow_times
from airflow_provider_etlworks.adoption.dag_file import dag_file, without_dates
from airflow_provider_etlworks.adoption.parse_check import check_dag_file
from airflow_provider_etlworks.adoption.pausing import RECORD_ENDING, PauseRecord, Switched
from airflow_provider_etlworks.adoption.pausing import pause as pause_schedules
from airflow_provider_etlworks.adoption.pausing import release as release_schedules
from airflow_provider_etlworks.adoption.plan import Adoption, plan_dags
from airflow_provider_etlworks.adoption.translation import translate
from airflow_provider_etlworks.bundles.import_once import BundleImport, flow_versions, named
from airflow_provider_etlworks.bundles.transfer import (
    PREVIEW_ENDING,
    back_up,
    export_bundle,
    introduction,
    open_bundle,
    preview_import,
)
from airflow_provider_etlworks.cli import terminal
from airflow_provider_etlworks.cli.terminal import log, plain, print_status, quiet_logging, spinner
from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import (
    EtlworksAlreadyRunning,
    EtlworksApiError,
    EtlworksConfigError,
    EtlworksError,
    EtlworksImportUnknown,
    EtlworksStartUnknown,
)
from airflow_provider_etlworks.client.flow_selection import select_flows
from airflow_provider_etlworks.client.models import Execution
from airflow_provider_etlworks.client.redaction import redact
from airflow_provider_etlworks.compat import AirflowNotFoundException, conf, let_commands_read_connections
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.runs.follow import Ending, follow
from airflow_provider_etlworks.runs.outcome import Outcome, failure_message, outcome_of, task_result
from airflow_provider_etlworks.runs.start import RunStarter
from airflow_provider_etlworks.runs.types import PollPolicy, RunRef
from airflow_provider_etlworks.storage import SharedLocalFile, stored_file
from airflow_provider_etlworks.webhook.settings import WEBHOOK_CONN_ID, webhook_settings, webhook_url
from airflow_provider_etlworks.worker.run_flow import find_run_at_once

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator
    from typing import Any

    from airflow_provider_etlworks.adoption.plan import PlannedDag
    from airflow_provider_etlworks.bundles.manifest import Manifest
    from airflow_provider_etlworks.bundles.transfer import OpenBundle
    from airflow_provider_etlworks.client.models import Schedule, Webhook
    from airflow_provider_etlworks.runs.follow import FollowResult
    from airflow_provider_etlworks.storage import StoredFile
    from airflow_provider_etlworks.webhook.settings import WebhookSettings


class ExitCode(IntEnum):
    """How a command ended."""

    SUCCESS = 0
    FAILED = 1
    USAGE = 2
    CANCELED = 3
    UNKNOWN = 4
    INTERRUPTED = 130


_OF_OUTCOME = {
    Outcome.SUCCESS: ExitCode.SUCCESS,
    Outcome.FAILURE: ExitCode.FAILED,
    Outcome.CANCELED: ExitCode.CANCELED,
}


def _command(work: Callable[[Namespace], ExitCode]) -> Callable[[Namespace], None]:
    """Turn a function into a command: its result or its error becomes the exit code, and a line for a person."""

    @wraps(work)
    def command(args: Namespace) -> None:
        let_commands_read_connections()
        try:
            with quiet_logging():
                code = work(args)
            # A broken pipe is noticed here, and not when Python ends.
            sys.stdout.flush()
        except BrokenPipeError:
            # Python would report it once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = ExitCode.FAILED
        except (EtlworksError, AirflowNotFoundException, OSError) as error:
            print_status("airflow etlworks: " + " ".join(str(error).split()))
            unknown = isinstance(error, (EtlworksStartUnknown, EtlworksImportUnknown))
            code = ExitCode.UNKNOWN if unknown else ExitCode.FAILED
        except KeyboardInterrupt:
            print_status("Interrupted.")
            code = ExitCode.INTERRUPTED
        if code:
            raise SystemExit(int(code))

    return command


def _flow_id(hook: EtlworksHook, flow: str) -> int:
    return int(flow) if flow.isascii() and flow.isdigit() else hook.find_flow(flow).id


# --- flows ----------------------------------------------------------------------------------------------------------


@_command
def flows(args: Namespace) -> ExitCode:
    """List flows."""
    hook = EtlworksHook(args.conn_id)
    with spinner("Reading the flows"):
        found = list(hook.list_flows(q=args.query, tags=args.tags))
    rows = [
        {
            "id": flow.id,
            "name": flow.name,
            "tags": list(flow.tags),
            "last_status": flow.latest_finished_status,
            "schedules": flow.enabled_schedules,
        }
        for flow in found
    ]
    terminal.show_rows(rows, args.output)
    return ExitCode.SUCCESS


# --- run ------------------------------------------------------------------------------------------------------------


@_command
def run(args: Namespace) -> ExitCode:
    """Start a flow, and follow its run."""
    hook = EtlworksHook(args.conn_id)
    flow_id = _flow_id(hook, args.flow)
    attempt = _Attempt(hook, flow_id, dict(args.params))
    followed: FollowResult | None = None
    try:
        with spinner(f"Starting flow {flow_id}") as show:
            audit_id = attempt.start()
            if args.wait:
                followed = _follow(hook, flow_id, audit_id, args, show)
    except KeyboardInterrupt:
        attempt.interrupted(stop=args.stop_on_interrupt)
        return ExitCode.INTERRUPTED
    known = followed.execution if followed else None
    url = hook.execution_url(flow_id, audit_id)
    terminal.show_record(task_result(known or Execution(flow_id=flow_id, audit_id=audit_id), url), args.output)
    if followed is None:
        return ExitCode.SUCCESS
    if followed.ending is not Ending.FINISHED or known is None:
        timeout = f"It was still going after {args.timeout:g} s." if followed.ending is Ending.DEADLINE else ""
        print_status(f"Run {audit_id} of flow {flow_id} may still be going. {timeout or followed.detail} {url}")
        return ExitCode.UNKNOWN
    outcome = outcome_of(known, fail_on_warning=args.fail_on_warning)
    if outcome is not Outcome.SUCCESS:
        print_status(f"{failure_message(known, url)} Its log: airflow etlworks log {flow_id} {audit_id}")
    return _OF_OUTCOME[outcome]


class _Attempt:
    """The start of a flow, and what is known about it at an interrupt."""

    def __init__(self, hook: EtlworksHook, flow_id: int, parameters: dict[str, str]) -> None:
        self._hook = hook
        self._flow_id = flow_id
        self._watermark: int | None = None
        self._audit_id: int | None = None
        self._start = RunStarter(
            flow_id=flow_id,
            clock=hook.client.clock,
            log=log,
            parameters=parameters,
            user=hook.settings.login,
            save_intent=self._save_intent,
            is_only_starter=True,
            run_key_parameter=hook.settings.run_key_parameter,
            run_key="airflow etlworks run",
        )

    def _save_intent(self, watermark: int | None) -> None:
        self._watermark = watermark

    def start(self) -> int:
        """Start the flow, once. Return the run's audit id."""
        try:
            started = self._hook.client.run(self._start.start())
        except EtlworksAlreadyRunning as error:
            # The error's own advice is for authors of DAGs.
            other = f": its run is {error.audit_id}" if error.audit_id is not None else ""
            raise EtlworksError(f"Flow {self._flow_id} is already running{other}. Nothing was started.") from error
        if started is None:
            raise EtlworksError(f"Flow {self._flow_id} was not started.")
        self._audit_id = started.audit_id
        url = self._hook.execution_url(self._flow_id, started.audit_id)
        log.info("Run %s of flow %s is accepted: %s", started.audit_id, self._flow_id, url)
        return started.audit_id

    def interrupted(self, *, stop: bool) -> None:
        """Stop the run, or report that it goes on."""
        audit_id = self._audit_id
        if audit_id is None and self._watermark is not None:
            print_status("Interrupted. The start may have reached Etlworks; looking for its run.")
            audit_id = find_run_at_once(self._hook, self._start, self._watermark)
        if audit_id is None:
            hidden = "No run is found yet; check Etlworks once more." if self._watermark is not None else ""
            print_status(hidden or "Interrupted. Nothing was started.")
        elif stop:
            print_status(f"Interrupted. {self._hook.stop_flow(self._flow_id, audit_id).detail}")
        else:
            print_status(
                f"Interrupted. Run {audit_id} of flow {self._flow_id} goes on; see it, or stop it, at "
                f"{self._hook.execution_url(self._flow_id, audit_id)}"
            )


def _follow(
    hook: EtlworksHook, flow_id: int, audit_id: int, args: Namespace, show: Callable[[str], None]
) -> FollowResult:
    client = hook.client

    def is_over(execution: Execution) -> bool:
        show(f"Run {audit_id} of flow {flow_id}: {execution.status}")
        return execution.is_terminal

    deadline = None if args.timeout is None else client.clock.time() + args.timeout
    return client.run(
        follow(
            RunRef(flow_id, audit_id),
            PollPolicy(args.poll_interval, deadline=deadline),
            clock=client.clock,
            log=log,
            is_over=is_over,
        )
    ).redacted(client.settings.secrets)


# --- log ------------------------------------------------------------------------------------------------------------


@_command
def log_of_run(args: Namespace) -> ExitCode:
    """Show the end of a run's log."""
    hook = EtlworksHook(args.conn_id)
    text = hook.execution_log(_flow_id(hook, args.flow), args.audit_id, last_lines=args.lines)
    for line in text.split("\n") if text else []:
        sys.stdout.write(plain(redact(line, hook.settings.secrets)) + "\n")
    return ExitCode.SUCCESS


# --- promote --------------------------------------------------------------------------------------------------------


@_command
def promote(args: Namespace) -> ExitCode:
    """Export flows, show what importing them would change, ask, and import them."""
    if not (args.flow_ids or args.flow_names or args.tags):
        print_status("airflow etlworks promote: give at least one --flow-id, --flow-name or --tag.")
        return ExitCode.USAGE
    if not (args.yes or sys.stdin.isatty()):
        print_status(
            "airflow etlworks promote: nobody can be asked, since the standard input is not a terminal. Give --yes."
        )
        return ExitCode.USAGE
    source, target = EtlworksHook(args.source_conn_id), EtlworksHook(args.target_conn_id)
    file = stored_file("--path", args.path)
    backup = stored_file("--backup-path", args.backup_path or f"{args.path}.backup")
    importing: _Import | None = None
    try:
        with spinner("Exporting"):
            manifest = _export(source, file, args)
        if manifest.is_from(target.settings):
            raise EtlworksConfigError(f"The flows come from {manifest.host}, which is also the target.")
        with open_bundle(file, manifest.sha256) as bundle:
            with spinner("Asking the target what would change"):
                raw = file.sibling(PREVIEW_ENDING)
                preview = preview_import(target.client, target.bundle_client, bundle, raw, log=log)
            terminal.show_markdown(preview.markdown(introduction(bundle, target.settings), raw.path))
            if not (args.yes or terminal.confirmed(f"Import this into {target.settings.root_url}?")):
                print_status("Nothing was imported.")
                return ExitCode.FAILED
            importing = _Import(target, bundle)
            with spinner("Importing"):
                importing.start(backup)
    except KeyboardInterrupt:
        if importing is None or not importing.was_sent:
            print_status("Interrupted. Nothing was imported.")
        else:
            print_status(
                "Interrupted after the import was sent: it may have been applied, or not. "
                f"Check these flows in {target.settings.root_url}: {named(manifest.flow_names)}."
            )
        return ExitCode.INTERRUPTED
    print_status(f"Imported {named(manifest.flow_names)} into {target.settings.root_url}.")
    return ExitCode.SUCCESS


def _export(source: EtlworksHook, file: StoredFile, args: Namespace) -> Manifest:
    chosen = select_flows(list(source.list_flows()), ids=args.flow_ids, names=args.flow_names, tags=args.tags)
    manifest = export_bundle(source.bundle_client, chosen, file, include_connections=args.include_connections, log=log)
    log.info("Exported %s to %s: %s bytes.", named(manifest.flow_names), file.path, manifest.size)
    return manifest


class _Import:
    """
    An import that happens once.

    :ivar was_sent: whether Etlworks may have received it.
    """

    def __init__(self, target: EtlworksHook, bundle: OpenBundle) -> None:
        self.was_sent = False
        self._target = target
        self._bundle = bundle

    def start(self, backup: StoredFile) -> None:
        """Back up what the import overwrites, and import the bundle."""
        client, bundle = self._target.bundle_client, self._bundle
        flows_before = list(self._target.list_flows())
        back_up(client, bundle, flows_before, backup, log=log)
        importing = BundleImport(
            call=bundle.import_call(),
            flow_names=bundle.flow_names,
            clock=client.clock,
            log=log,
            user=self._target.settings.login,
            definitions=lambda: bundle.definitions,
            save_intent=self._save_intent,
            secrets=self._target.settings.secrets,
        )
        with bundle.explained(importing.call):
            client.run(importing.import_once(flow_versions(flows_before, bundle.flow_names)))

    def _save_intent(self, sent: bool) -> None:
        self.was_sent = sent


# --- adopt, release -------------------------------------------------------------------------------------------------


@_command
def adopt(args: Namespace) -> ExitCode:
    """Write a DAG file that takes over Etlworks's schedules, and turn them off in Etlworks."""
    if args.all == bool(args.flow_ids or args.tags):
        print_status("airflow etlworks adopt: give either --all, or at least one --flow or --tag.")
        return ExitCode.USAGE
    if args.pause and not args.output:
        print_status("airflow etlworks adopt: --pause takes --output, since the file must be there first.")
        return ExitCode.USAGE
    if args.output and not args.output.endswith(".py"):
        print_status("airflow etlworks adopt: --output must end with .py, or Airflow does not read the file.")
        return ExitCode.USAGE
    hook, zone = EtlworksHook(args.conn_id), ZoneInfo(args.timezone)
    record = _pause_record(args.output, hook) if args.output else None
    now = datetime.fromtimestamp(int(hook.client.clock.time()), zone)
    with spinner("Reading the schedules"):
        schedules, flow_names = _schedules_to_adopt(hook, args)
    adoptions, rows = [], []
    for each in schedules:
        adoption = None
        with spinner(f"Comparing the times of schedule {each.id}"):
            paused_by_us = record is not None and each.id in record.schedules
            if each.flow_id is not None and (each.enabled is not False or paused_by_us):
                translation = translate(each.schedule, zone, now, airflow_times)
                name = flow_names.get(each.flow_id)
                adoption = Adoption(each, name, translation, accepted=args.accept_clock_changes)
                adoptions.append(adoption)
        rows.append(_adoption_row(each, adoption, zone))
    if not adoptions:
        terminal.show_rows(rows, "table", as_status=True)
        print_status("No schedule is on, so nothing was written.")
        return ExitCode.FAILED
    dags = plan_dags(adoptions, grouped=args.one_dag_per_time)
    text = dag_file(dags, source=hook.settings.root_url, conn_id=args.conn_id, zone=zone.key, now=now)
    with spinner("Letting Airflow parse the DAG file"):
        check_dag_file(text, [each.dag_id for each in dags])
    terminal.show_rows(rows, "table", as_status=not args.output)
    _report_times(args, dags)
    if record is None:
        sys.stdout.write(text)
        return ExitCode.SUCCESS
    _write_dag_file(args.output, text, force=args.force)
    print_status(f"Wrote {args.output}: {len(dags)} DAGs.")
    if not args.pause:
        print_status("Etlworks's schedules are as they were. To turn them off, give --pause.")
        return ExitCode.SUCCESS
    return _pause_adopted(hook, [each for each in adoptions if each.schedule], record, args.output)


def _pause_adopted(hook: EtlworksHook, adoptions: list[Adoption], record: PauseRecord, path: str) -> ExitCode:
    """Turn off in Etlworks what the DAG file starts, and report it."""
    try:
        with spinner("Turning the schedules off in Etlworks"):
            switched = pause_schedules(hook, [each.source for each in adoptions], record, log)
    except KeyboardInterrupt:
        print_status(f"Interrupted. {record.file.path} has what was turned off; airflow etlworks release turns it on.")
        return ExitCode.INTERRUPTED
    now = hook.client.clock.time()
    for each in adoptions:
        due = [time.isoformat(timespec="minutes") for time in each.translation.next_times if time.timestamp() <= now]
        if due:
            print_status(
                f"Schedule {each.source.id} came due at {due[0]}, before it was turned off: Etlworks may have started "
                "its flow then, and its DAG will do so, too."
            )
    print_status(
        f"Turned off in Etlworks: {len(switched.done)} schedules. `airflow etlworks release {path}` turns them on "
        "again. Unpause the DAGs now: Airflow creates them paused, unless its configuration says otherwise."
    )
    return _report_switched(switched)


def _schedules_to_adopt(hook: EtlworksHook, args: Namespace) -> tuple[list[Schedule], dict[int, str]]:
    """Return the selected schedules by their ids, and the names of all flows."""
    flows = list(hook.list_flows())
    names = {each.id: each.name for each in flows}
    schedules = sorted(hook.list_schedules(), key=lambda each: each.id or 0)
    if args.all:
        return schedules, names
    chosen = {each.id for each in select_flows(flows, ids=args.flow_ids, tags=args.tags)}
    return [each for each in schedules if each.flow_id in chosen], names


def _pause_record(dag_file_path: str, hook: EtlworksHook) -> PauseRecord:
    """Return the record beside a DAG file, or a new one."""
    file = SharedLocalFile(dag_file_path + RECORD_ENDING)
    record = PauseRecord.load(file) or PauseRecord(file, hook.settings.root_url, hook.etlworks_conn_id)
    if record.etlworks != hook.settings.root_url:
        raise EtlworksConfigError(
            f"{file.path} is about schedules of {record.etlworks}, and the connection {hook.etlworks_conn_id!r} is one "
            f"to {hook.settings.root_url}."
        )
    return record


def _adoption_row(schedule: Schedule, adoption: Adoption | None, zone: ZoneInfo) -> dict[str, Any]:
    times: list[str] = []
    becomes = "left out"
    if adoption is None:
        remark = "off in Etlworks" if schedule.flow_id is not None else "Etlworks does not say which flow it starts"
    else:
        translation = adoption.translation
        becomes = str(adoption.schedule or "no schedule")
        remark = "; ".join([*translation.reasons, *translation.differences])
        times = [each.astimezone(zone).isoformat(timespec="minutes") for each in translation.next_times[:1]]
    return {
        "schedule": schedule.id,
        "name": schedule.name,
        "flow": schedule.flow_id,
        "etlworks": schedule.schedule,
        "airflow": becomes,
        "next": times,
        "remark": remark,
    }


def _report_times(args: Namespace, dags: list[PlannedDag]) -> None:
    print_status(f"Etlworks does not say in which time zone it reads its schedules. Here, it is {args.timezone}.")
    unscheduled = [each for each in dags if each.schedule is None]
    if unscheduled:
        print_status(f"DAGs without a schedule: {len(unscheduled)}. Their schedules stay on in Etlworks.")
    if any(task.adoption.translation.schedule for each in unscheduled for task in each.tasks):
        print_status("With --accept-clock-changes, those that differ only when clocks change have a schedule.")


def _write_dag_file(path: str, text: str, *, force: bool) -> None:
    """Write the file. One that differs only in its dates is left as it is: an interrupted command can be repeated."""
    file = SharedLocalFile(path)
    present = file.read()
    if present is not None and without_dates(present.decode("utf-8", "replace")) == without_dates(text):
        return
    if present is not None and not force:
        raise EtlworksConfigError(f"{path} exists. To overwrite it, give --force.")
    file.write(text.encode())


def _report_switched(switched: Switched) -> ExitCode:
    for each, reason in switched.failed.items():
        print_status(f"Schedule {each} was not changed: {reason}")
    for each, reason in switched.in_doubt.items():
        print_status(f"It is not known whether schedule {each} was changed: {reason}")
    return ExitCode.UNKNOWN if switched.in_doubt else ExitCode.FAILED if switched.failed else ExitCode.SUCCESS


@_command
def release(args: Namespace) -> ExitCode:
    """Turn on the schedules again that were turned off for a DAG file."""
    file = SharedLocalFile(args.file + RECORD_ENDING)
    record = PauseRecord.load(file)
    if record is None:
        print_status(f"No schedule is recorded as turned off for {args.file}: {file.path} does not exist.")
        return ExitCode.SUCCESS if Path(args.file).exists() else ExitCode.FAILED
    hook = EtlworksHook(args.conn_id or record.conn_id)
    record = _pause_record(args.file, hook)
    try:
        with spinner("Turning the schedules on in Etlworks"):
            switched = release_schedules(hook, record, log)
    except KeyboardInterrupt:
        print_status("Interrupted. Repeat the command: it leaves alone what is on already.")
        return ExitCode.INTERRUPTED
    print_status(f"Turned on in Etlworks: {len(switched.done)} schedules.")
    if not record.schedules:
        Path(file.path).unlink()
        print_status(f"Remove {args.file} or pause its DAGs now, or both will start the flows.")
    return _report_switched(switched)


# --- webhook --------------------------------------------------------------------------------------------------------


@_command
def create_webhook(args: Namespace) -> ExitCode:
    """Create a webhook that posts completed runs to this Airflow."""
    settings = _webhook_settings()
    url = webhook_url(args.url or conf.get("api", "base_url", fallback=""))
    hook = EtlworksHook(args.conn_id or settings.etlworks_conn_id)
    body = {
        "name": args.name,
        "description": "Reports completed runs to Apache Airflow.",
        "events": args.events or ["Flow.Executed"],
        "url": url,
        "method": "POST",
        "contentType": "application/json",
        "includeEntity": False,
        "enabled": True,
        **settings.webhook_fields(),
    }
    if args.flow_ids:
        body["flowIncludes"] = args.flow_ids
    with spinner("Creating the webhook"):
        created = hook.create_webhook(body)
    terminal.show_record(_webhook_row(created), args.output)
    return ExitCode.SUCCESS


@_command
def list_webhooks(args: Namespace) -> ExitCode:
    """List the webhooks in Etlworks."""
    hook = _webhook_hook(args)
    with _explained_webhooks(hook):
        found = list(hook.client.iterate(endpoints.list_webhooks()))
    terminal.show_rows([_webhook_row(each) for each in found], args.output)
    return ExitCode.SUCCESS


@_command
def remove_webhook(args: Namespace) -> ExitCode:
    """Remove a webhook from Etlworks, after asking."""
    if not (args.yes or sys.stdin.isatty()):
        print_status(
            "airflow etlworks webhook remove: nobody can be asked, since the standard input is not a terminal. "
            "Give --yes."
        )
        return ExitCode.USAGE
    hook = _webhook_hook(args)
    with _explained_webhooks(hook):
        known = {each.id: each for each in hook.client.iterate(endpoints.list_webhooks())}
    webhook = known.get(args.webhook_id)
    if webhook is None:
        raise EtlworksConfigError(f"{hook.settings.root_url} has no webhook {args.webhook_id}.")
    shown = f"webhook {webhook.id}, {webhook.name!r}, which posts to {webhook.url}"
    if not (args.yes or terminal.confirmed(f"Remove {shown}?")):
        print_status("Nothing was removed.")
        return ExitCode.FAILED
    with _explained_webhooks(hook):
        hook.client.send(endpoints.delete_webhook(args.webhook_id))
    print_status(f"Removed {shown}.")
    return ExitCode.SUCCESS


def _webhook_settings() -> WebhookSettings:
    """Read the connection of the webhook."""
    connection: Any = EtlworksHook.get_connection(WEBHOOK_CONN_ID)
    return webhook_settings(connection)


def _webhook_hook(args: Namespace) -> EtlworksHook:
    """Return the hook of the Etlworks that posts; the connection of the webhook need not exist if it is named."""
    return EtlworksHook(args.conn_id or _webhook_settings().etlworks_conn_id)


@contextmanager
def _explained_webhooks(hook: EtlworksHook) -> Iterator[None]:
    """Say what to do if Etlworks does not have these calls, which it does not document."""
    try:
        yield
    except EtlworksApiError as error:
        if error.status not in (404, 405):
            raise
        raise EtlworksError(
            f"{error} This release of Etlworks may not list or delete webhooks by its API: use its page Webhooks."
        ) from error


def _webhook_row(webhook: Webhook) -> dict[str, Any]:
    return {
        "id": webhook.id,
        "name": webhook.name,
        "url": webhook.url,
        "events": list(webhook.events),
        "enabled": webhook.enabled,
        "flows": list(webhook.flow_includes),
        "headers": list(webhook.header_names),
    }
