"""An Etlworks for tests of the operator, the trigger and the hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.etlworks import Etlworks

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def etlworks(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Etlworks]:
    """Run a sandbox that shares a fast clock with the client; at the end, no try has started two runs."""
    with Etlworks(monkeypatch, caplog) as etlworks:
        yield etlworks
    etlworks.assert_one_run_per_try()
