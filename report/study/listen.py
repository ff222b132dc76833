"""Two sides, the same prompts, blind: DIR/listen.html, the paper's human study as a page without a server.

The order of the pairs and which side is A are drawn from a seed. The page holds the key, in a form that
nobody reads by accident, and opens it after the last vote. Pairs that sound the same on both sides say
nothing and are left out.
"""

import json
import random
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pydantic import TypeAdapter

from conf.study import BASE_METHOD
from report.read import AudioClip, read_clip
from report.records import Sample
from report.run.choose import pick_evenly_spaced, take_within_budget
from report.run.curves import PageData
from report.run.page import render_page
from report.study.comparison import pair_seeds
from report.study.findings import Study, StudyCell
from report.study.trials import read_held_out_replies
from report.study.votes import VOTE_FORMAT, VOTE_QUESTIONS
from speech.data.problems import UNPRINTABLE_CHARACTERS
from store.files import write_atomically
from store.lines import read_json_lines

LISTENING_SCRIPTS = ("elements.js", "listen.js")
LISTENING_STYLES = ("page.css", "listen.css")
LISTENING_BUDGET_BYTES = 6_000_000  # of the page


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningSide:
    """What is listened to: replies after training, or what every run began with. ``runs``: by seed."""

    name: str
    base: bool
    runs: Mapping[int, Path]

    def samples(self, seed: int) -> dict[str, Sample]:
        """By row, those that kept their audio."""
        saved_samples = read_json_lines(self.runs[seed] / "samples.jsonl", TypeAdapter(Sample)).rows
        wanted = "before" if self.base else "after"
        return {
            sample.row_id: sample for sample in saved_samples if sample.when == wanted and sample.audio is not None
        }

    def codes(self, seed: int) -> dict[str, list[int]]:
        """By row, the audio tokens of all replies: what a clip was decoded from."""
        replies = read_held_out_replies(self.runs[seed], "before" if self.base else "after")
        return {reply.row_id: reply.codes for reply in replies}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningPair:
    """The same prompt from both sides."""

    item: str  # row_id/seed
    question: str
    style: str | None
    left: AudioClip
    right: AudioClip

    @property
    def cost(self) -> int:
        """Bytes in the page."""
        return (len(self.left.content) + len(self.right.content)) * 4 // 3 + 500


def choose_sides(study: Study, wanted: Sequence[str] | None) -> tuple[ListeningSide, ListeningSide]:
    """The two sides: named as ``base`` or by a run, else the first two methods, a single one and the base.

    ValueError: no such run, or twice the same side.
    """
    methods = list(dict.fromkeys(cell.method for cell in study.cells))
    if wanted is None:
        chosen = [BASE_METHOD, methods[0]] if len(methods) == 1 else methods[:2]
    else:
        chosen = [_find_method(name, study.cells) for name in wanted]
        if chosen[0] == chosen[1]:
            raise ValueError(f"--listen: must name two sides: {wanted[0]} and {wanted[1]} are both {chosen[0]}")
    left, right = (
        _build_side(name, study, next(method for method in (*chosen, *methods) if method != BASE_METHOD))
        for name in chosen
    )
    return left, right


def _find_method(name: str, cells: Sequence[StudyCell]) -> str:
    if name == BASE_METHOD:
        return BASE_METHOD
    for cell in cells:
        if cell.run == Path(name).absolute():
            return cell.method
    raise ValueError(f"--listen: must be {BASE_METHOD} or one of the runs: got {name}")


def _build_side(name: str, study: Study, other: str) -> ListeningSide:
    """``other``: whose runs tell what the base said."""
    own = other if name == BASE_METHOD else name
    runs = {cell.seed: cell.run for cell in study.cells if cell.method == own}
    return ListeningSide(name=name, base=name == BASE_METHOD, runs=runs)


def match_pairs(left: ListeningSide, right: ListeningSide) -> tuple[list[ListeningPair], list[str]]:
    """All pairs that can be told apart, and notes about the rest."""
    distinct_pairs: list[ListeningPair] = []
    alike, silent = 0, 0
    for left_seed, right_seed in pair_seeds(list(left.runs), list(right.runs)):
        left_samples, right_samples = left.samples(left_seed), right.samples(right_seed)
        left_codes, right_codes = left.codes(left_seed), right.codes(right_seed)
        for row in (row for row in left_samples if row in right_samples):
            clips = (
                _read_sample_clip(left.runs[left_seed], left_samples[row]),
                _read_sample_clip(right.runs[right_seed], right_samples[row]),
            )
            if clips[0] is None or clips[1] is None:
                silent += 1
            elif row in left_codes and left_codes[row] == right_codes.get(row):
                alike += 1
            else:
                distinct_pairs.append(
                    ListeningPair(
                        item=f"{row}/{left_seed}",
                        question=left_samples[row].question,
                        style=left_samples[row].style,
                        left=clips[0],
                        right=clips[1],
                    )
                )
    notes = [f"{alike} pairs sound the same on both sides and are left out"] if alike else []
    return distinct_pairs, notes + ([f"{silent} pairs have no audio on one side"] if silent else [])


def _read_sample_clip(run: Path, sample: Sample) -> AudioClip | None:
    assert sample.audio is not None, "see ListeningSide.samples"
    clip_or_reason = read_clip(run, sample.audio)
    return clip_or_reason if isinstance(clip_or_reason, AudioClip) else None


def build_listening_data(left: ListeningSide, right: ListeningSide, most: int, seed: int) -> PageData:
    """What the page needs. ValueError: no pair to listen to."""
    available_pairs, notes = match_pairs(left, right)
    chosen = take_within_budget(
        [pick_evenly_spaced(available_pairs, most)], lambda pair: pair.cost, LISTENING_BUDGET_BYTES
    )
    if not chosen:
        reason = "; ".join(notes) or "samples.jsonl of the runs have no prompt with audio in common"
        raise ValueError(f"nothing to listen to: {reason}")
    if len(chosen) < len(available_pairs):
        notes.append(f"{len(chosen)} of {len(available_pairs)} pairs are here")
    chance = random.Random(seed)
    chance.shuffle(chosen)
    swapped = _deal_sides(len(chosen), chance)
    names = [UNPRINTABLE_CHARACTERS.sub("?", side.name)[:300] for side in (left, right)]
    key = {"left": names[0], "right": names[1], "swapped": swapped}
    sounds: dict[str, str] = {}
    for place, (pair, swap) in enumerate(zip(chosen, swapped, strict=True)):
        first, second = (pair.right, pair.left) if swap else (pair.left, pair.right)
        sounds |= {f"{place}a": _encode_clip(first), f"{place}b": _encode_clip(second)}
    items = [{"item": pair.item, "question": pair.question, "style": pair.style} for pair in chosen]
    hidden = b64encode(json.dumps(key).encode()).decode()
    identity = sha256(json.dumps([items, hidden, sounds]).encode()).hexdigest()[:16]
    return {
        "format": VOTE_FORMAT,
        "id": identity,
        "questions": VOTE_QUESTIONS,
        "items": items,
        "key": hidden,
        "notes": notes,
        "audio": sounds,
    }


def _deal_sides(count: int, chance: random.Random) -> list[bool]:
    """Half and half in a drawn order; of an odd number, the one that is left over falls to either."""
    half = (count + chance.randrange(2)) // 2
    swapped = [place < half for place in range(count)]
    chance.shuffle(swapped)
    return swapped


def _encode_clip(audio: AudioClip) -> str:
    return f"data:{audio.media};base64,{b64encode(audio.content).decode('ascii')}"


def write_listening_page(left: ListeningSide, right: ListeningSide, to: Path, most: int, seed: int) -> Path:
    """``to``/listen.html, whole or not at all. ValueError: no pair to listen to."""
    to.mkdir(parents=True, exist_ok=True)
    target = to / "listen.html"
    write_atomically(
        target, render_page(build_listening_data(left, right, most, seed), LISTENING_SCRIPTS, LISTENING_STYLES)
    )
    return target
