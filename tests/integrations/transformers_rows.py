"""Rows of Hugging Face transformers."""

from __future__ import annotations

from tests.integrations.rows import Row

ROWS: list[Row] = []
