"""What a third party hears in a reply: pocketsphinx, Whisper, a transcription endpoint.

Read ``choose.py`` (the recogniser that the settings name); ``remembered.py`` keeps what was heard.
"""
