"""
What MkDocs does beyond its configuration: the project's address, the pages from outside ``docs/``, the messages.

MkDocs calls these functions by their names.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomllib
import yaml
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

# Files outside docs/ that are pages of the site.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the addresses of repository and site, if the project has them already."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"]["custom"]
    config.repo_url = table["repository"] or None
    config.site_url = table["documentation"] or None
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside ``docs/``."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to pages of the site, and fill in the table of messages."""
    outside = {target: source for source, target in PAGES.items()}
    here = outside.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    markdown = _LINK.sub(lambda link: _on_the_site(link, posixpath.dirname(here), page, files, config), markdown)
    if page.file.src_uri == "troubleshooting.md":
        messages = yaml.safe_load((ROOT / "docs" / "troubleshooting.yaml").read_text())
        markdown = markdown.replace("<!-- entries -->", "\n".join(rendered(messages)))
    return markdown


def _on_the_site(link: re.Match[str], folder: str, page: Page, files: Files, config: MkDocsConfig) -> str:
    """Return a link between the repository's files as the site needs it."""
    text, target, anchor = link.groups(default="")
    path = posixpath.normpath(posixpath.join(folder, target))
    on_site = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
    if on_site and files.get_file_from_path(on_site):
        return f"[{text}]({posixpath.relpath(on_site, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"
    if config.repo_url:
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})"
    # The project has no public home yet: the file has no address.
    return text


def rendered(messages: Iterable[dict[str, Any]]) -> Iterable[str]:
    """Yield the lines of the page: a heading for each message, why it appears, and what to do."""
    for message in messages:
        yield f"## {message['id'].replace('-', ' ').replace('_', ' ').capitalize()} {{#{message['id']}}}\n"
        yield "```text"
        yield str(message["message"]).strip()
        yield "```\n"
        yield f"**Why.** {str(message['why']).strip()}\n"
        yield f"**What to do.** {str(message['what_to_do']).strip()}\n"
