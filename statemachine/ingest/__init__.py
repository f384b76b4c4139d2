"""Readers of the exports that people really have: each record of a file is one `Row`, in order, and none is lost."""

from __future__ import annotations

from statemachine.ingest.ordered import OrderedRows
from statemachine.ingest.rows import FORMATS, Options, Row
from statemachine.ingest.source import open_source, sniff

__all__ = ["FORMATS", "Options", "OrderedRows", "Row", "open_source", "sniff"]
