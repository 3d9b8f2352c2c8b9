"""Report each day how many runs in Etlworks failed, which flows they belong to, and who changed what."""

from __future__ import annotations

try:
    from airflow.sdk import dag, task
except ImportError:  # Airflow 2
    from airflow.decorators import dag, task


@dag(schedule=None, tags=["etlworks"])
def etlworks_daily_report() -> None:
    """Write a report from the metrics summary, the day's runs and the audit log. Needs the role Administrator."""

    @task
    def report() -> str:
        """Return the report as Markdown."""
        from datetime import datetime, timedelta, timezone

        from airflow_provider_etlworks.hooks.etlworks import EtlworksHook

        hook = EtlworksHook()
        summary = hook.metrics_summary(window_hours=24)
        failed = {run.flow_name for run in hook.executions_of_day() if run.status == "error"}
        yesterday = datetime.now(timezone.utc) - timedelta(days=1)
        changes = [event for event in hook.audit_events(since=yesterday) if event.action in ("create", "update")]
        lines = [
            f"# Etlworks, {datetime.now(timezone.utc):%Y-%m-%d}",
            f"{summary.total} runs ended, {summary.failed} of them failed.",
            *(f"- failed: {name}" for name in sorted(filter(None, failed))),
            f"{len(changes)} changes:",
            *(f"- {event.user}: {event.action} {event.resource_id}" for event in changes[:20]),
        ]
        return "\n".join(lines)

    report()


etlworks_daily_report()
