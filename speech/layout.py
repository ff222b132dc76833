"""What token ids mean, as one fingerprint: ids that were written down are used under the same one only."""

import hashlib
import json

from speech.checkpoint import read_json
from speech.families.base import Family


def layout_of(family: Family) -> str:
    """Of family, channels, stop ids, tokenizer and codec, 16 digits; the weights are no part of it.

    ValueError: the checkpoint folder's wavgate.json cannot be read.
    """
    codec = family.codec()
    told = json.dumps([family.name, family.stop_ids, codec.size, codec.sample_rate, codec.frame_rate])
    digest = hashlib.sha256(told.encode() + family.channels.table_V.tobytes())
    declared = family.path / "wavgate.json"
    own = read_json(declared).get("codec") if declared.is_file() else None
    for name in ("tokenizer.json", own):
        file = family.path / name if isinstance(name, str) else None
        if file is not None and file.is_file():
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]
