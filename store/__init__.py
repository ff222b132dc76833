"""Files on disk: whole or not at all, JSON lines that survive a torn end.

Read ``files.py``, ``lines.py``, ``journal.py``, ``kinds.py``. May import: nothing of ours.
"""
