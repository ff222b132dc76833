"""Prompts in, replies out: engines that sample token ids, and the worker that decodes them to sound.

Read ``types.py``, ``engine.py`` (the protocol), ``worker.py``; then an engine: ``vllm_engine.py`` or
``torch_engine.py``. ``weights.py`` packs new weights. Only ``vllm_*`` imports vllm.
May import: ``store, conf, speech``.
"""
