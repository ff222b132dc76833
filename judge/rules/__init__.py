"""Judges without a model: checked answers, measures of sound, vetoes, ONNX plug-ins.

Read ``verifiable.py`` (the semantic axis), ``acoustic.py`` with ``measure.py`` and ``voice.py``, ``vetoes.py``.
"""
