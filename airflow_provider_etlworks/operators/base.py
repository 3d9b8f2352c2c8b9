"""What the operators share: the hook of their connection, and for those that follow a run its arguments."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from airflow_provider_etlworks.client.values import parse_seconds
from airflow_provider_etlworks.compat import AirflowTaskTimeout, BaseOperator
from airflow_provider_etlworks.links import EtlworksExecutionLink

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
    from airflow_provider_etlworks.worker.follow_run import RunTask

ExecuteT = TypeVar("ExecuteT", bound=Callable[..., Any])
TaskT = TypeVar("TaskT", bound="RunTask")


def reports_failure(execute: ExecuteT) -> ExecuteT:
    """
    Let a method of an operator end with a block of short log lines if it fails, and with a short traceback.

    The operator's ``_execution``, or else its ``_about``, says what failed. Anybody else's error is raised as it is.
    """

    @wraps(execute)
    def wrapper(self: HookMixin, *args: Any, **kwargs: Any) -> Any:
        try:
            return execute(self, *args, **kwargs)
        except (Exception, AirflowTaskTimeout) as error:  # all of them, to report those that are ours
            failed = _reported(self, kwargs["context"] if "context" in kwargs else args[0], error)
            if failed is None:
                raise
            raise failed from None

    return cast("ExecuteT", wrapper)


def _reported(operator: HookMixin, context: Context, error: BaseException) -> BaseException | None:
    from airflow_provider_etlworks.worker.failure_report import TaskReport, report

    return report(operator._execution or TaskReport(operator, context, operator._about), error)  # noqa: SLF001


class HookMixin:
    """What every operator and sensor has: the hook of its connection, made when it is first asked for."""

    etlworks_conn_id: str
    _execution: Any = None
    """What executes the task, once it has begun, if it reports by itself how it failed."""
    _about = "The task"
    """What the task does, for the report of its failure."""

    @cached_property
    def hook(self) -> EtlworksHook:
        """The hook of this task's connection."""
        from airflow_provider_etlworks.hooks.etlworks import EtlworksHook

        return EtlworksHook(self.etlworks_conn_id)


class RunOperator(HookMixin, BaseOperator):
    """
    The base of the operators that start a run and follow it. Their docstrings say what the parameters mean.

    An operator is a declaration: what happens on the worker is in the :class:`RunTask` that a subclass makes.
    """

    ui_color = "#d7ebf7"
    ui_fgcolor = "#0b3a5b"
    operator_extra_links = (EtlworksExecutionLink(),)

    flow_id: int | str | None

    def __init__(
        self,
        *,
        etlworks_conn_id: str,
        wait_for_completion: bool,
        deferrable: bool,
        poll_interval: float | timedelta,
        timeout: float | timedelta | None,
        patience: float | timedelta,
        fail_on_warning: bool,
        cancel_on_kill: bool,
        log_lines: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.etlworks_conn_id = etlworks_conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = parse_seconds(f"{self.task_id}: poll_interval", poll_interval)
        self.timeout = None if timeout is None else parse_seconds(f"{self.task_id}: timeout", timeout)
        self.patience = parse_seconds(f"{self.task_id}: patience", patience)
        self.fail_on_warning = fail_on_warning
        self.cancel_on_kill = cancel_on_kill
        self.log_lines = log_lines
        self._execution: RunTask | None = None
        self._killed = False
        if isinstance(log_lines, bool) or not isinstance(log_lines, int) or log_lines < 0:
            raise ValueError(f"{self.task_id}: log_lines is {log_lines!r}; it is a whole number, 0 for none.")

    # --- Airflow calls these --------------------------------------------------------------------------------------

    @reports_failure
    def execute(self, context: Context) -> dict[str, Any]:
        """Start the run and, if the task waits, follow it to its end."""
        return self._begin(self._new_task(context)).run()

    @reports_failure
    def execute_complete(
        self, context: Context, event: Any = None, is_ours: bool = True, root_url: str | None = None
    ) -> dict[str, Any]:
        """
        Go on after the triggerer has followed the run.

        :param event: what the trigger reported.
        :param is_ours: whether this task started the run.
        :param root_url: the address of the run's instance, as the connection named it when the task deferred.
        """
        return self._begin(self._new_task(context)).complete(event, is_ours=is_ours, root_url=root_url)

    def on_kill(self) -> None:
        """Stop the run. Airflow calls this on the worker when the task is killed or times out."""
        self._killed = True
        if self._execution is not None:
            self._execution.kill()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """
        Return the OpenLineage facets of the run. The OpenLineage provider calls this after a failure, too.

        :param task_instance: the task instance.
        :return: ``None`` if that provider is not installed.
        """
        from airflow_provider_etlworks.worker.openlineage import lineage_of

        return lineage_of(self.flow_id, None if self._execution is None else self._execution.result)

    # --------------------------------------------------------------------------------------------------------------

    @abstractmethod
    def _new_task(self, context: Context) -> RunTask:
        """Return what executes this operator."""

    def _begin(self, execution: TaskT) -> TaskT:
        self._execution = execution
        if self._killed:
            # Airflow 3 lets a task go on that was killed while the modules above were imported.
            execution.kill()
        return execution
