"""``wavgate pairs``: judged replies as preference pairs. Read ``verb.py``, then ``outcome.py``."""
