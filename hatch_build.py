"""The project's addresses in the built metadata, of the repository that builds it: REPOSITORY_URL names that."""

from __future__ import annotations

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Addresses(MetadataHookInterface):
    """Fills `[project.urls]`; without REPOSITORY_URL there are none."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Adds the addresses to the metadata."""
        if repository := os.environ.get("REPOSITORY_URL", "").rstrip("/"):
            metadata["urls"] = {
                "Source": repository,
                "Documentation": f"{repository}/blob/main/docs/index.md",
                "Changelog": f"{repository}/blob/main/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
