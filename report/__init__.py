"""A run directory in, one self-contained HTML page out.

Read ``records.py`` (the files' lines) and ``read.py``; ``run/page.py`` draws a run, ``study/write.py`` a study of
several; ``web/`` has the page's scripts and styles. May import: ``store, conf, speech`` and one module of formulas.
"""

from report.run.page import write_run_page

__all__ = ["write_run_page"]
