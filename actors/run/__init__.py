"""The run directory and the process that owns it: records, checkpoints, lock, live line, signals.

Read ``record.py`` and ``checkpoint.py``.
"""
