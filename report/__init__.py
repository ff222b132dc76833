"""A run directory in, one self-contained HTML page out."""

from report.page import build

__all__ = ["build"]
