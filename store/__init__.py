"""Files on disk: whole or not at all, JSON lines that survive a torn end, bounded memory of what was read.

Read ``files.py``, ``lines.py``, ``journal.py``, ``recent.py``, ``kinds.py``. May import: nothing of ours.
"""
