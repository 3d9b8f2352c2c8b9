"""
Take the screenshots of the guides from a real Airflow: ``uv run docs/take_screenshots.py``.

Needs Chromium on the PATH (Debian: ``apt install chromium``); nothing else is to be installed. Starts two sandboxes and
the Airflow that is installed, 3.1 or later, promotes the example's flows up to the question, and looks at its page.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from airflow_provider_etlworks.sandbox import Sandbox
from airflow_provider_etlworks.sandbox.demo.examples import Narrator, example_dags_folder, running
from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow
from airflow_provider_etlworks.sandbox.demo.promotion import GOOD_RELEASE, PromotionDemo, environment_of

IMAGES = Path(__file__).parent / "images"
SIZE = (1360, 860)
# Milliseconds of its own time that the page gets to draw itself; they pass as fast as it works.
DRAWING = 30_000
LIMIT = 120.0
SMALLEST_PICTURE = 20_000


def take(url: str, target: Path, chromium: str) -> None:
    """
    Look at a page, and keep what is seen.

    :param url: The page.
    :param target: Where the picture goes, as PNG.
    :param chromium: The browser's command.
    :raises RuntimeError: the picture is all but empty.
    """
    with tempfile.TemporaryDirectory(prefix="chromium-") as profile:
        # Root, as in most containers, cannot have Chromium's own sandbox.
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
        raise RuntimeError(f"{target} shows next to nothing: the page has not drawn itself")


def main() -> int:
    """
    Take them all.

    :return: The exit code.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.stderr.write("Chromium is not on the PATH.\n")
        return 1
    IMAGES.mkdir(exist_ok=True)
    narrator = Narrator()
    with Sandbox() as staging, Sandbox() as production, tempfile.TemporaryDirectory(prefix="bundles-") as bundles:
        airflow = LocalAirflow(example_dags_folder(), environment_of(staging, production, bundles))
        with running(airflow, narrator):
            demo = PromotionDemo(narrator, staging, production, airflow)
            demo.release(GOOD_RELEASE)
            take(demo.wait_for_approval(), IMAGES / "approval.png", chromium)
            narrator.say(f"Written: {IMAGES / 'approval.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
