"""What happens with a connection, for whoever counts it. Nothing is counted here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.call import Call
    from airflow_provider_etlworks.client.models import Execution


class Metrics:
    """Receives what happens with a connection, and ignores it. A subclass that counts it must raise nothing."""

    __slots__ = ()

    def sent(self, call: Call[Any]) -> None:
        """
        Receive that a request was sent.

        :param call: the call.
        """

    def refused(self) -> None:
        """Receive that Etlworks answered a request with 429."""

    def throttled(self, factor: float) -> None:
        """
        Receive how much slower than configured runs are polled.

        :param factor: by what all intervals are multiplied; 1 if the rate limit is sufficient.
        """

    def start_in_doubt(self) -> None:
        """Receive that a run may or may not have been started."""

    def lost_touch(self) -> None:
        """Receive that a task ends without the result of its run, since the run can no longer be read."""

    def run_read(self, execution: Execution | None, now: float, since: float = 0.0) -> None:
        """
        Receive the last record of a run that was followed.

        :param execution: the record; ``None`` if there is none.
        :param now: the Unix time.
        :param since: Unix time when the wait for the run's end began; an earlier end was not waited for.
        """


NO_METRICS = Metrics()
"""Counts nothing."""
