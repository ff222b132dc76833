"""A run directory in, one self-contained HTML page out."""

from report.page import write_run_page

__all__ = ["write_run_page"]
