"""Rows of networks written by hand."""

from __future__ import annotations

from tests.integrations.rows import Row

ROWS: list[Row] = []
