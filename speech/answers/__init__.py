"""What was said, made comparable: words, numbers, expressions, and the answers that a manifest expects.

Read ``words.py`` (the one normaliser) and ``expected.py``.
"""
