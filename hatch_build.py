"""The parts of the package's metadata that need the project's public address, which has one place: pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class AddressesHook(MetadataHookInterface):
    """Adds the links that a package index shows, and a README whose links work there."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """
        Set ``urls`` and ``readme``.

        :param metadata: the table ``[project]``.
        """
        repository, documentation = self.config["repository"], self.config["documentation"]
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["urls"] = {}
        if repository:
            readme = re.sub(r"(\]\()(?!https?://|#|mailto:)", rf"\g<1>{repository}/blob/main/", readme)
            # A page of files is no picture.
            readme = readme.replace(f"{repository}/blob/main/docs/images/", f"{repository}/raw/main/docs/images/")
            metadata["urls"] = {
                "Homepage": repository,
                "Source": repository,
                "Issues": f"{repository}/issues",
                "Changelog": f"{repository}/blob/main/CHANGELOG.md",
            }
        if documentation:
            metadata["urls"]["Documentation"] = documentation
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}
