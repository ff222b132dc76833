"""What a spoken dialogue model is: channels, grammars, codecs, families and datasets."""
