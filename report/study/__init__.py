"""Several runs held against each other. Read ``write.py``, ``comparison.py`` and ``paired.py``."""
