"""The addresses that a package page shows, which are known when a release is built, and not in the source.

`LATENTAUG_ADDRESS=https://host/owner/name python -m build` sets the links of the project, and makes those of the README
absolute, to the tag of the version, as GitHub and GitLab spell them. Without it, a build has no links of the project,
and the README as it stands. A wheel that is built from a source distribution has what that one has.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

VARIABLE = "LATENTAUG_ADDRESS"
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", flags=re.MULTILINE | re.DOTALL)
ABSOLUTE = r"(?![a-z]+:|#|/)"
IMAGE = re.compile(rf"(!\[[^\]]*\]\(){ABSOLUTE}([^)\s]+)")
LINK = re.compile(rf"(\]\(|^\[[^\]]+\]: +){ABSOLUTE}([^)\s]+)", flags=re.MULTILINE)


class Addresses(MetadataHookInterface):
    """Sets `urls` and `readme` of the project."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set both, but for what a source distribution has already."""
        root = Path(self.root)
        address = None if (root / "PKG-INFO").exists() else given(os.environ)
        metadata.setdefault("urls", urls(address, metadata["version"]))
        text = (root / "README.md").read_text(encoding="utf-8")
        readme = {"content-type": "text/markdown", "text": absolute(text, address, metadata["version"])}
        metadata.setdefault("readme", readme)


def given(environment: Any) -> str | None:
    """Return the address of the repository that the environment names, if it does.

    Raises:
        ValueError: It is no address.
    """
    address = environment.get(VARIABLE, "").rstrip("/")
    if address and not re.fullmatch(r"https://[^/\s]+(/[^/\s]+)+", address):
        raise ValueError(f"{VARIABLE} is to be an address such as https://host/owner/name; got {address!r}.")
    return address or None


def urls(address: str | None, version: str) -> dict[str, str]:
    """Return what the page of a package links to."""
    if address is None:
        return {}
    return {
        "Homepage": address,
        "Documentation": f"{address}/blob/v{version}/docs/README.md",
        "Source": f"{address}/tree/v{version}",
        "Changelog": f"{address}/blob/v{version}/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }


def absolute(text: str, address: str | None, version: str) -> str:
    """Return a page of Markdown with links and images that lead to the tag, but for code and places on the page."""
    if address is None:
        return text
    parts = CODE.split(text)  # code and other text, by turns
    for index in range(0, len(parts), 2):
        images = IMAGE.sub(rf"\1{address}/raw/v{version}/\2", parts[index])
        parts[index] = LINK.sub(rf"\1{address}/blob/v{version}/\2", images)
    return "".join(parts)
