"""Replies in, verdicts out. A verdict is a score or a reason; no score is ever made up.

Read ``types.py``, then ``panel.py`` (the axes put together) and ``worker.py``. ``rules/`` measures in this process,
``recognisers/`` hear words, ``endpoint/`` talks HTTP within limits, ``llm/`` asks a model that hears.
May import: ``store, conf, speech, rollout``.
"""
