"""What a user can set: Hydra groups (YAML), composed and then checked by pydantic.

Read ``schema.py`` (every setting), then ``load.py`` (overrides in, a checked ``Config`` out). ``algorithm.py``,
``learning.py``, ``judging.py`` and ``endpoints.py`` are parts of the schema; ``messages.py`` and ``keys.py`` word
what is wrong. May import: nothing of ours but ``store``.
"""
