"""The log says where "Open in Etlworks" leads, if that is not the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.etlworks import Etlworks

NOTE = "'Open in Etlworks' leads to Etlworks's start page, not to run {}: set the connection's ui_url"


@pytest.mark.parametrize("ui_url", [None, "https://etlworks.example.com/{flow_id}/{audit_id}"])
def test_log_says_where_the_link_leads(etlworks: Etlworks, ui_url: str | None) -> None:
    etlworks.connect(ui_url=ui_url)

    assert etlworks.task().run().colour == "success"

    (run,) = etlworks.sandbox.runs()
    assert (NOTE.format(run.audit_id) in etlworks.log_text) == (ui_url is None)
