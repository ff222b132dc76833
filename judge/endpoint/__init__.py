"""One call to an OpenAI-compatible endpoint, within its limits.

Read ``http.py`` (one POST), ``chat.py`` and ``completion.py`` (what came back, read strictly), ``failures.py``;
``limits.py``, ``breaker.py``, ``leases.py`` and ``cache.py`` decide whether a call is made at all.
"""
