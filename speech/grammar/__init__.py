"""Which kind of thing each token is, and which may follow.

Read ``channels.py``, then ``interleave.py`` (a family's reply grammar), which ``automaton.py`` compiles.
"""
