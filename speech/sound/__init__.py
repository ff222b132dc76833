"""Audio files: read and written within limits, and proof that a file holds the whole of its sound.

Read ``audio.py``; ``containers.py`` asks ``riff``, ``flac``, ``ogg`` or ``mpeg`` whether something is cut off.
"""
