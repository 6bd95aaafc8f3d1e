"""Lets the site show examples in docstrings as code, and shapes as they are written."""

from __future__ import annotations

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Calls each "Example:" of a docstring by the name that is read as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
