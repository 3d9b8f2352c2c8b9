"""Refuse a release that is not ready: ``python .ci/check_release.py v0.1.0 dist/``. Needs no packages."""

from __future__ import annotations

import re
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LINKS = ("Homepage", "Documentation", "Source", "Issues", "Changelog")


def problems(tag: str, metadata: bytes, changelog: str) -> Iterator[str]:
    """
    Yield each reason not to release.

    :param tag: the tag of the release, such as ``v0.1.0``.
    :param metadata: the file ``METADATA`` of the wheel.
    :param changelog: the text of ``CHANGELOG.md``.
    """
    package = message_from_bytes(metadata)
    version = package["Version"]
    if tag != f"v{version}":
        yield f"The tag is {tag}, but the package's version is {version}."
    if re.search(r"dev|a\d|b\d|rc\d", version):
        yield f"{version} is not a final version."
    links = dict(link.split(", ", 1) for link in package.get_all("Project-URL", []))
    for name in LINKS:
        if not re.fullmatch(r"https://[^\s/]+\.[^\s/]+(/\S*[^\s/])?", links.get(name, "")):
            yield f"The link {name} is missing: fill in the project's addresses in pyproject.toml."
    for target in re.findall(r"\]\(([^)]+)\)", package.get_payload()):
        if not target.startswith(("https://", "#")):
            yield f"The README's link to {target} does not work on a package index."
    if "not yet on PyPI" in package.get_payload():
        yield "The README says that the package is not yet on PyPI."
    released = re.search(rf"^## {re.escape(version)} - (\S+)\n", changelog, re.MULTILINE)
    if released is None or not re.fullmatch(r"\d{4}-\d\d-\d\d", released[1]):
        yield f"CHANGELOG.md has no section '## {version} - YYYY-MM-DD'."
    unreleased = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if unreleased and unreleased[1].strip():
        yield "CHANGELOG.md has changes under Unreleased."


def main(tag: str, folder: str) -> int:
    """
    Check a release.

    :param tag: the tag of the release.
    :param folder: where its wheel is.
    :return: the exit code: 1 if there are problems, which are printed.
    """
    (wheel,) = Path(folder).glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (name,) = [name for name in files.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = files.read(name)
    changelog = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    found = list(problems(tag, metadata, changelog))
    sys.stdout.write("".join(f"Not ready for a release: {problem}\n" for problem in found) or f"{tag} is ready.\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
