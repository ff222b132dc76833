"""Verdicts in, new policy version out.

Read ``statistics.py``, ``gate.py``, ``advantage.py``, ``decide.py`` (pure: a step's groups to its batch), then
``rows.py`` and ``objectives.py`` (what each position weighs), ``batch.py`` (packed), ``loss.py``, ``step.py`` (one
sharded optimiser step).
May import: ``store, conf, speech, rollout, judge``.
"""
