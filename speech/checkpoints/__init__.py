"""A Hugging Face folder, looked at before its weights are loaded.

Read ``folder.py`` (is it whole?), ``config_keys.py`` (is every key read, or known to change nothing?), ``finite.py``.
"""
