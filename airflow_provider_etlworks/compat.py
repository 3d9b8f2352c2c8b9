"""Every difference between the supported Airflow versions, and nothing else. No other module looks at a version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import BaseHook, BaseOperator, BaseOperatorLink, Context
    from airflow.sdk.configuration import conf
    from airflow.sdk.exceptions import (
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSkipException,
        AirflowTaskTimeout,
    )
else:
    try:
        from airflow.sdk import BaseOperator, BaseOperatorLink
    except ImportError:  # Airflow 2
        from airflow.models.baseoperator import BaseOperator
        from airflow.models.baseoperatorlink import BaseOperatorLink

    try:
        from airflow.sdk.configuration import conf
    except ImportError:  # before Airflow 3.2
        from airflow.configuration import conf

    try:
        from airflow.sdk.exceptions import (
            AirflowFailException,
            AirflowNotFoundException,
            AirflowSkipException,
            AirflowTaskTimeout,
        )
    except ImportError:  # before Airflow 3.2
        from airflow.exceptions import (
            AirflowFailException,
            AirflowNotFoundException,
            AirflowSkipException,
            AirflowTaskTimeout,
        )

__all__ = [
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowSkipException",
    "AirflowTaskTimeout",
    "BaseHook",
    "BaseOperator",
    "BaseOperatorLink",
    "conf",
    "get_xcom",
    "task_state_store",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import what a DAG file does not need when somebody asks for it."""
        if name != "BaseHook":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            from airflow.sdk.bases.hook import BaseHook
        except ImportError:  # before Airflow 3.1
            from airflow.hooks.base import BaseHook
        return BaseHook


def task_state_store(context: Context) -> Any | None:
    """Return what keeps a task's notes across its tries; ``None`` before Airflow 3.3, which has no such thing."""
    return context.get("task_state_store")


def get_xcom(ti_key: Any, key: str) -> Any:
    """Return a task instance's XCom value; ``None`` where there is none."""
    return _xcom_class().get_value(ti_key=ti_key, key=key)


def _xcom_class() -> Any:
    try:
        from airflow.sdk.execution_time.xcom import XCom
    except ImportError:  # Airflow 2
        from airflow.models import xcom

        return xcom.XCom
    return XCom
