"""What a spoken dialogue model is, apart from its weights.

Read ``grammar/`` (channels of tokens, what may follow what), ``families/`` (a model's layout, one file each), then
``dataset.py`` (a manifest row as token ids). Below them ``codecs/`` and ``encoders/`` (sound as codes, as vectors),
``sound/`` (audio files), ``data/`` (manifests and other people's data sets), ``answers/`` (words and numbers as they
are compared), ``checkpoints/`` (a Hugging Face folder, checked before it is loaded). May import: ``store, conf``.
"""
