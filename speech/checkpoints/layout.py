"""What token ids mean, as one fingerprint: ids that were written down are used under the same one only."""

import hashlib
import json

from speech.families.base import Family


def fingerprint_layout(family: Family) -> str:
    """Of family, channels, stop ids, tokenizer and codec, 16 digits; the weights are no part of it."""
    codec = family.codec()
    description = json.dumps([family.name, family.stop_ids, codec.size, codec.sample_rate, codec.frame_rate])
    digest = hashlib.sha256(description.encode() + family.channels.table_SV.tobytes())
    tokenizer = family.vocabulary.file
    if tokenizer.is_file():
        with tokenizer.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    digest.update(bytes.fromhex(codec.fingerprint))
    return digest.hexdigest()[:16]
