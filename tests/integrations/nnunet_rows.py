"""Rows of nnU-Net's networks."""

from __future__ import annotations

from tests.integrations.rows import Row

ROWS: list[Row] = []
