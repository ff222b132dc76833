"""What rows leave behind to see whether another file has them too: ids, questions, sounds.

A test that shares them with training is not held out. Some hashes a row; two rows ask the same question where
its words are the same, whatever their case and punctuation, and have the same sound where the samples are.
"""

import hashlib
import re
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speech.data.clips import ClipInspector


class RowTraces:
    """Of the rows of one file, as they are examined.

    Example:
        traces.add_row(content, clips)
        print(describe_overlap(train.traces, test.traces))  # 0 ids, 3 questions, 2 clips
    """

    def __init__(self) -> None:
        self.ids, self.questions = array("Q"), array("Q")
        self.clips = array("Q"), array("Q")  # one per grid of ``ClipInspector.hash_sound``
        self.echoes = 0  # rows whose reply is their question's own sound

    def add_row(self, content: Mapping[str, Any], clips: ClipInspector) -> None:
        """A row as parsed. Clips that are put together to one reply, word by word, leave none."""
        own, question = content.get("id"), content.get("question_text")
        if isinstance(own, (str, int)):
            self.ids.append(_hash_text(str(own)))
        if words := re.findall(r"\w+", question.casefold()) if isinstance(question, str) else []:
            self.questions.append(_hash_text(" ".join(words)))
        prompt_sounds = [clips.hash_sound(_as_list(entry)) for entry in _as_list(content.get("audios"))]
        replies = [
            sound
            for reply in _list_reply_clips(content)
            if len(reply) == 1 and (sound := clips.hash_sound(reply)) is not None
        ]
        for sound in (*prompt_sounds, *replies):
            for grid, grid_clips in zip(sound or (), self.clips, strict=False):
                grid_clips.append(grid)
        last = prompt_sounds[-1] if prompt_sounds else None
        self.echoes += last is not None and any(last[0] == reply[0] or last[1] == reply[1] for reply in replies)


def describe_overlap(known: RowTraces, other: RowTraces) -> str:
    """How much of what ``other`` has is in ``known`` too; empty: none of it."""
    counts = {
        "ids": _count_common(known.ids, other.ids),
        "questions": _count_common(known.questions, other.questions),
        "clips": max(map(_count_common, known.clips, other.clips)),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items()) if any(counts.values()) else ""


def _list_reply_clips(content: Mapping[str, Any]) -> list[Sequence[Any]]:
    """Of a prompt, of pairs, of WavAlign's pairs."""
    sides = [content.get(name) for name in ("chosen", "rejected")]
    return [
        *(_as_list(content.get(name)) for name in ("sft_target_audio", "rejected_audio")),
        *(_as_list(side.get("audio")) for side in sides if isinstance(side, dict)),
    ]


def _as_list(given: Any) -> Sequence[Any]:
    return given if isinstance(given, list) else [] if given is None else [given]


def _count_common(hashes: "array[int]", other: "array[int]") -> int:
    return len(np.intersect1d(np.frombuffer(hashes, np.uint64), np.frombuffer(other, np.uint64)))


def _hash_text(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
