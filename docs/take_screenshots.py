"""
Take the screenshots of the guides from a real Airflow: ``uv run docs/take_screenshots.py``.

It needs Chromium on the PATH (Debian: ``apt install chromium``) and the installed Airflow, 3.1 or later. It starts two
sandboxes and Airflow, promotes the flows of the example until they need an approval, and takes a picture of that page.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from airflow_provider_etlworks.sandbox.demo.examples import Reporter, environments, example_dags_folder, running
from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow
from airflow_provider_etlworks.sandbox.demo.promotion import GOOD_RELEASE, PromotionDemo

IMAGES = Path(__file__).parent / "images"
SIZE = (1360, 860)
# Milliseconds of virtual time for drawing the page; they pass as fast as Chromium works.
DRAWING = 30_000
LIMIT = 120.0
SMALLEST_PICTURE = 20_000


def take(url: str, target: Path, chromium: str) -> None:
    """
    Take a screenshot of a page.

    :param url: The page.
    :param target: The PNG file to write.
    :param chromium: The command of the browser.
    :raises RuntimeError: the picture is almost empty.
    """
    with tempfile.TemporaryDirectory(prefix="chromium-") as profile:
        # Chromium's own sandbox does not work for root, the user of most containers.
        as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
        subprocess.run(  # noqa: S603  # no part of it comes from outside
            [
                chromium,
                "--headless",
                *as_root,
                "--disable-gpu",
                "--hide-scrollbars",
                "--no-proxy-server",
                "--no-first-run",
                "--disable-background-networking",
                "--force-color-profile=srgb",
                f"--user-data-dir={profile}",
                f"--window-size={SIZE[0]},{SIZE[1]}",
                f"--virtual-time-budget={DRAWING}",
                f"--screenshot={target}",
                url,
            ],
            check=True,
            timeout=LIMIT,
            capture_output=True,
        )
    if target.stat().st_size < SMALLEST_PICTURE:
        raise RuntimeError(f"{target} is almost empty: the page was not drawn")


def main() -> int:
    """
    Take all screenshots.

    :return: The exit code.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.stderr.write("Chromium is not on the PATH.\n")
        return 1
    IMAGES.mkdir(exist_ok=True)
    reporter = Reporter()
    with environments() as (staging, production, variables):
        airflow = LocalAirflow(example_dags_folder(), variables)
        with running(airflow, reporter):
            demo = PromotionDemo(reporter, staging, production, airflow)
            demo.release(GOOD_RELEASE)
            take(demo.wait_for_approval(), IMAGES / "approval.png", chromium)
            reporter.info(f"Written: {IMAGES / 'approval.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
