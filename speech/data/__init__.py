"""Data sets: manifests of ours, and other people's that become one.

Read ``manifest.py`` (a row), ``lazy_rows.py`` and ``problems.py`` (a file of them), ``pairs.py``; ``convert.py`` with
``sources/`` makes a manifest of WavAlign's, ms-swift's and other rows.
"""
