"""Vectors of clips, kept in memory: an audio encoder is frozen, so it encodes a clip once.

Invariant: together never more than ``limit`` bytes; whoever was asked for least lately goes first.
"""

from collections import OrderedDict

from speech.features import AudioVectors

VECTOR_CACHE_BYTES = 256 << 20  # bytes

ClipDigests = tuple[str, ...]  # sha256 of each clip's file, in the order in which they are heard as one wave


class AudioVectorCache:
    """The vectors of some clips.

    Example:
        cache = AudioVectorCache()
        vectors = cache.get(clips)
        if vectors is None:
            vectors = encoder.encode(wave)
            cache.put(clips, vectors)
    """

    def __init__(self, limit: int = VECTOR_CACHE_BYTES) -> None:
        self._limit, self._bytes = limit, 0
        self._vectors: OrderedDict[ClipDigests, AudioVectors] = OrderedDict()

    def get(self, clips: ClipDigests) -> AudioVectors | None:
        """None: not heard yet, or forgotten."""
        if clips in self._vectors:
            self._vectors.move_to_end(clips)
        return self._vectors.get(clips)

    def put(self, clips: ClipDigests, vectors: AudioVectors) -> None:
        """Keep the vectors of clips that ``get`` does not have; from now on nobody can write in them."""
        assert clips not in self._vectors, "heard twice"
        vectors.setflags(write=False)
        self._vectors[clips] = vectors
        self._bytes += vectors.nbytes
        while self._bytes > self._limit:
            self._bytes -= self._vectors.popitem(last=False)[1].nbytes
