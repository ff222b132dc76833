"""``wavgate study``: methods x seeds, each a run in a process of its own. Read ``cells.py``, then ``verb.py``."""
