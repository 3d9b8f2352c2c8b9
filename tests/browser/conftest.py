"""A headless Chromium, and an Airflow and its sandboxes to look at."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from airflow_provider_etlworks.sandbox.demo.examples import environments, example_dags_folder
from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_etlworks.sandbox import Sandbox

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SIZE = {"width": 1360, "height": 860}
LIMIT = 90.0

FAILING_DAG = """
try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2
    from airflow import DAG

from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator

with DAG("ledger", schedule=None):
    EtlworksRunFlowOperator(task_id="export_ledger", flow_id=12350, deferrable=True, poll_interval=1)
"""

# The words that a person sees: inside the window, not cut by the edge of a part that scrolls, not covered. Airflow 2
# has its grid in a shadow root.
SEEN = """() => {
    const words = [];
    const shadows = [...document.querySelectorAll("*")].map((each) => each.shadowRoot).filter(Boolean);
    const nodes = [document.body, ...shadows].flatMap((root) => {
        const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
        const found = [];
        while (walker.nextNode()) found.push(walker.currentNode);
        return found;
    });
    for (const node of nodes) {
        for (const match of node.data.matchAll(/\\S+/g)) {
            const range = document.createRange();
            range.setStart(node, match.index);
            range.setEnd(node, match.index + match[0].length);
            const boxes = [...range.getClientRects()];
            const isSeen = ({left, right, top, bottom}) => {
                if (right - left < 1 || bottom - top < 1) return false;
                return [[left + 0.5, top + 1], [right - 0.5, bottom - 1]].every(([x, y]) => {
                    const hit = node.getRootNode().elementFromPoint(x, y);
                    return hit && (hit.contains(node) || node.parentElement.contains(hit));
                });
            };
            if (boxes.length && boxes.every(isSeen)) words.push(match[0]);
        }
    }
    return words.join(" ");
}"""


class Screen:
    """
    A page in the browser, as a person sees it without scrolling.

    :param page: the page.
    :param save_pictures: whether pictures of the guides are written.
    """

    def __init__(self, page: Any, *, save_pictures: bool) -> None:
        self.page = page
        self._save_pictures = save_pictures

    def seen(self) -> str:
        """Return the words that are visible now."""
        return str(self.page.evaluate(SEEN))

    def wait_for(self, *texts: str) -> str:
        """Wait until all texts are visible at once, without scrolling. Return all that is visible."""
        give_up = time.monotonic() + LIMIT
        while missing := [text for text in texts if text not in (seen := self.seen())]:
            if time.monotonic() > give_up:
                pytest.fail(f"Nobody sees {missing!r} at {self.page.url}. What is visible:\n{seen}")
            self.page.wait_for_timeout(200)
        return seen

    def save(self, name: str, above: str | None = None) -> None:
        """Write a picture of the guides, if the tests are asked to: of the window, or of its part above a text."""
        if self._save_pictures:
            bottom = self.page.get_by_text(above).first.bounding_box()["y"] if above else SIZE["height"]
            clip = {"x": 0, "y": 0, "width": SIZE["width"], "height": bottom}
            self.page.screenshot(path=str(IMAGES / f"{name}.png"), clip=clip)


class Pages:
    """
    Airflow 3's pages: where they are, and what a person does there.

    :param airflow: the running Airflow.
    :param screen: shows its pages.
    """

    extra_fields = "Extra Fields"
    test_succeeded = "Test Connection Successful"
    test_failed = "Test Connection Failed"
    states = ("Success", "Failed")

    def __init__(self, airflow: LocalAirflow, screen: Screen) -> None:
        self.airflow = airflow
        self.screen = screen
        self.page = screen.page

    def open_new_connection(self, conn_id: str) -> None:
        """Open the form of a new connection of our type."""
        self.page.goto(f"{self.airflow.base_url}/connections")
        self.page.get_by_role("button", name="Add Connection").click()
        self.page.locator("input[name=connection_id]").fill(conn_id)
        self.page.get_by_role("combobox").first.click()
        self.page.keyboard.type("Etlworks")
        self.page.get_by_role("option", name="etlworks").click()

    def field(self, name: str) -> Any:
        """Return an input of that form."""
        return self.page.locator(f"input[name={name}]")

    def test_connection(self, conn_id: str) -> None:
        """Save the form, since only a saved connection can be tested, and test it."""
        self.page.get_by_role("button", name="Save").click()
        self.screen.wait_for("successfully created", conn_id)
        self.page.get_by_role("row", name=conn_id).get_by_role("button", name="Test Connection").click()

    def save(self, name: str, above: str | None = None) -> None:
        """Write a picture of the guides, as :meth:`Screen.save` does."""
        self.screen.save(name, above)

    def open_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Open the page of a task instance, which begins with its log."""
        self.page.goto(f"{self.airflow.base_url}/dags/{dag_id}/runs/{run_id}/tasks/{task_id}")

    def open_task_details(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Open the part of that page that has the links."""
        self.page.goto(f"{self.airflow.base_url}/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/details")


class Airflow2Pages(Pages):
    """Airflow 2's pages. A task's state is a color there, and the guides have no pictures of them."""

    extra_fields = test_succeeded = test_failed = ""
    states = ("", "")

    def save(self, name: str, above: str | None = None) -> None:
        """Write nothing."""

    def open_new_connection(self, conn_id: str) -> None:
        self.page.goto(f"{self.airflow.base_url}/connection/add")
        self.page.locator("#conn_id").fill(conn_id)
        self.page.locator("#conn_type").select_option("etlworks")

    def field(self, name: str) -> Any:
        return self.page.locator(f"#{name}")

    def test_connection(self, conn_id: str) -> None:
        """Test the form as it is: the button needs no saved connection."""
        self.page.locator("#test-connection").click()
        # The result is above the form, and the page does not scroll there.
        self.page.locator(".alert").first.scroll_into_view_if_needed()

    def _open_in_grid(self, dag_id: str, run_id: str, task_id: str, tab: str) -> None:
        query = urlencode({"dag_run_id": run_id, "task_id": task_id, "tab": tab})
        self.page.goto(f"{self.airflow.base_url}/dags/{dag_id}/grid?{query}")

    def open_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        self._open_in_grid(dag_id, run_id, task_id, "logs")

    def open_task_details(self, dag_id: str, run_id: str, task_id: str) -> None:
        self._open_in_grid(dag_id, run_id, task_id, "details")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium on the PATH (Debian: apt install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: use uv run --group browser")
    # Chromium's own sandbox does not work for root, the user of most containers.
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*as_root, "--no-proxy-server"])
        yield browser
        browser.close()


@pytest.fixture
def screen(chromium: Any, request: pytest.FixtureRequest) -> Iterator[Screen]:
    context = chromium.new_context(viewport=SIZE)
    context.set_default_timeout(LIMIT * 1000)
    yield Screen(context.new_page(), save_pictures=request.config.getoption("--save-pictures"))
    context.close()


@pytest.fixture(scope="session")
def sandboxes(chromium: Any) -> Iterator[tuple[Sandbox, Sandbox, dict[str, str]]]:
    """Run staging and production. They need Chromium, so that nothing is started without it."""
    with environments() as everything:
        yield everything


@pytest.fixture(scope="session")
def production(sandboxes: tuple[Sandbox, Sandbox, dict[str, str]]) -> Sandbox:
    return sandboxes[1]


@pytest.fixture(scope="session")
def airflow(
    sandboxes: tuple[Sandbox, Sandbox, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalAirflow]:
    """Run an Airflow with the example DAGs and one that fails. Its UI tests connections."""
    folder = tmp_path_factory.mktemp("dags")
    shutil.copytree(example_dags_folder(), folder, dirs_exist_ok=True)
    (folder / "ledger.py").write_text(FAILING_DAG)
    with LocalAirflow(folder, {**sandboxes[2], "AIRFLOW__CORE__TEST_CONNECTION": "Enabled"}) as airflow:
        if (3,) <= airflow.version < (3, 1):
            pytest.skip("these are the pages of Airflow 2.11, and of Airflow 3.1 and later")
        yield airflow


@pytest.fixture
def pages(airflow: LocalAirflow, screen: Screen) -> Pages:
    """Return the pages of the Airflow that is installed."""
    return (Airflow2Pages if airflow.version < (3,) else Pages)(airflow, screen)
