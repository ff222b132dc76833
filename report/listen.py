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

from conf.study import BASE
from report.choose import spaced, within
from report.comparison import pairs
from report.curves import Data
from report.page import render
from report.read import Clip, clip, lines
from report.records import Sample
from report.study import Cell, Study
from report.trials import held_out_replies
from report.votes import FORMAT, QUESTIONS
from speech.files import write_whole
from speech.problems import UNPRINTED

SCRIPTS = ("elements.js", "listen.js")
STYLES = ("page.css", "listen.css")
CLIP_BYTES = 6_000_000  # of the page


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What is listened to: replies after training, or what every run began with. ``runs``: by seed."""

    name: str
    base: bool
    runs: Mapping[int, Path]

    def samples(self, seed: int) -> dict[str, Sample]:
        """By row, those that kept their audio."""
        found = lines(self.runs[seed] / "samples.jsonl", TypeAdapter(Sample)).rows
        wanted = "before" if self.base else "after"
        return {one.row_id: one for one in found if one.when == wanted and one.audio is not None}

    def codes(self, seed: int) -> dict[str, list[int]]:
        """By row, the audio tokens of all replies: what a clip was decoded from."""
        replies = held_out_replies(self.runs[seed], "before" if self.base else "after")
        return {reply.row_id: reply.codes for reply in replies}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The same prompt from both sides."""

    item: str  # row_id/seed
    question: str
    style: str | None
    left: Clip
    right: Clip

    @property
    def cost(self) -> int:
        """Bytes in the page."""
        return (len(self.left.content) + len(self.right.content)) * 4 // 3 + 500


def sides_of(study: Study, wanted: Sequence[str] | None) -> tuple[Side, Side]:
    """The two sides: named as ``base`` or by a run, else the first two methods, a single one and the base.

    ValueError: no such run, or twice the same side.
    """
    methods = list(dict.fromkeys(cell.method for cell in study.cells))
    if wanted is None:
        chosen = [BASE, methods[0]] if len(methods) == 1 else methods[:2]
    else:
        chosen = [_method(name, study.cells) for name in wanted]
        if chosen[0] == chosen[1]:
            raise ValueError(f"--listen: must name two sides: {wanted[0]} and {wanted[1]} are both {chosen[0]}")
    left, right = (_side(name, study, next(one for one in (*chosen, *methods) if one != BASE)) for name in chosen)
    return left, right


def _method(name: str, cells: Sequence[Cell]) -> str:
    if name == BASE:
        return BASE
    for cell in cells:
        if cell.run == Path(name).absolute():
            return cell.method
    raise ValueError(f"--listen: must be {BASE} or one of the runs: got {name}")


def _side(name: str, study: Study, other: str) -> Side:
    """``other``: whose runs tell what the base said."""
    own = other if name == BASE else name
    runs = {cell.seed: cell.run for cell in study.cells if cell.method == own}
    return Side(name=name, base=name == BASE, runs=runs)


def matched(left: Side, right: Side) -> tuple[list[Pair], list[str]]:
    """All pairs that can be told apart, and notes about the rest."""
    found: list[Pair] = []
    alike, silent = 0, 0
    for one, other in pairs(list(left.runs), list(right.runs)):
        ours, theirs = left.samples(one), right.samples(other)
        said, told = left.codes(one), right.codes(other)
        for row in (row for row in ours if row in theirs):
            clips = _clip(left.runs[one], ours[row]), _clip(right.runs[other], theirs[row])
            if clips[0] is None or clips[1] is None:
                silent += 1
            elif row in said and said[row] == told.get(row):
                alike += 1
            else:
                found.append(
                    Pair(
                        item=f"{row}/{one}",
                        question=ours[row].question,
                        style=ours[row].style,
                        left=clips[0],
                        right=clips[1],
                    )
                )
    notes = [f"{alike} pairs sound the same on both sides and are left out"] if alike else []
    return found, notes + ([f"{silent} pairs have no audio on one side"] if silent else [])


def _clip(run: Path, sample: Sample) -> Clip | None:
    assert sample.audio is not None, "see Side.samples"
    found = clip(run, sample.audio)
    return found if isinstance(found, Clip) else None


def data(left: Side, right: Side, most: int, seed: int) -> Data:
    """What the page needs. ValueError: no pair to listen to."""
    found, notes = matched(left, right)
    chosen = within([spaced(found, most)], lambda pair: pair.cost, CLIP_BYTES)
    if not chosen:
        told = "; ".join(notes) or "samples.jsonl of the runs have no prompt with audio in common"
        raise ValueError(f"nothing to listen to: {told}")
    if len(chosen) < len(found):
        notes.append(f"{len(chosen)} of {len(found)} pairs are here")
    chance = random.Random(seed)
    chance.shuffle(chosen)
    swapped = _dealt(len(chosen), chance)
    names = [UNPRINTED.sub("?", side.name)[:300] for side in (left, right)]
    key = {"left": names[0], "right": names[1], "swapped": swapped}
    sounds: dict[str, str] = {}
    for place, (pair, swap) in enumerate(zip(chosen, swapped, strict=True)):
        first, second = (pair.right, pair.left) if swap else (pair.left, pair.right)
        sounds |= {f"{place}a": _uri(first), f"{place}b": _uri(second)}
    items = [{"item": pair.item, "question": pair.question, "style": pair.style} for pair in chosen]
    hidden = b64encode(json.dumps(key).encode()).decode()
    identity = sha256(json.dumps([items, hidden, sounds]).encode()).hexdigest()[:16]
    return {
        "format": FORMAT,
        "id": identity,
        "questions": QUESTIONS,
        "items": items,
        "key": hidden,
        "notes": notes,
        "audio": sounds,
    }


def _dealt(count: int, chance: random.Random) -> list[bool]:
    """Half and half in a drawn order; of an odd number, the one that is left over falls to either."""
    half = (count + chance.randrange(2)) // 2
    found = [place < half for place in range(count)]
    chance.shuffle(found)
    return found


def _uri(found: Clip) -> str:
    return f"data:{found.media};base64,{b64encode(found.content).decode('ascii')}"


def write(left: Side, right: Side, to: Path, most: int, seed: int) -> Path:
    """``to``/listen.html, whole or not at all. ValueError: no pair to listen to."""
    to.mkdir(parents=True, exist_ok=True)
    target = to / "listen.html"
    write_whole(target, render(data(left, right, most, seed), SCRIPTS, STYLES))
    return target
