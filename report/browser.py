"""Rollout records, samples and events as the page shows them: chosen groups, word differences, audio.

Invariant: what is left out is counted and said. Budgets are bytes of the finished page.
"""

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path

from report.choose import spaced, within
from report.curves import Data
from report.read import Clip, clip
from report.records import Event, RolloutRecord, Sample, Score

TOKEN_BYTES, CLIP_BYTES, SAMPLE_BYTES = 3_200_000, 4_400_000, 1_500_000
MOST_EVENTS = 300

Group = tuple[RolloutRecord, ...]


def groups(records: Sequence[RolloutRecord]) -> list[Group]:
    """One step's records, sorted by group, as groups."""
    return [tuple(members) for _, members in groupby(records, key=lambda record: record.group)]


def browser(run_dir: Path, by_step: Mapping[int, Sequence[RolloutRecord]]) -> tuple[Data, dict[str, str]]:
    """The rollout browser's groups by step, and the clips they play by path.

    Groups whose audio is on disk come first: a group to listen to says more than one to read.
    """
    found = {step: groups(records) for step, records in by_step.items()}
    views = {_key(group): [_reply(record) for record in group] for members in found.values() for group in members}
    sizes = {_key(group): _size(run_dir, group) for members in found.values() for group in members}
    queues = [sorted(members, key=lambda group: not sizes[_key(group)]) for members in found.values()]
    drawn = within(queues, lambda group: len(json.dumps(views[_key(group)])), TOKEN_BYTES)
    audible = [[group for group in drawn if _key(group)[0] == step and sizes[_key(group)]] for step in found]
    heard = within(audible, lambda group: sizes[_key(group)], CLIP_BYTES)
    paths = {record.audio for group in heard for record in group if record.audio}
    playing = {path: _data_uri(audio) for path in sorted(paths) if isinstance(audio := clip(run_dir, path), Clip)}
    steps = []
    for step, members in found.items():
        chosen = sorted((group for group in drawn if _key(group)[0] == step), key=_key)
        shown = [_group(run_dir, group, views[_key(group)], playing) for group in chosen]
        steps.append({"step": step, "groups": shown, "left_out": len(members) - len(chosen)})
    silent = sum(len(queue) for queue in audible) - len(heard)
    note = f"{silent} of {silent + len(heard)} groups with audio are shown without it (page budget)"
    return {"steps": steps, "note": note if silent else None}, playing


def _key(group: Group) -> tuple[int, int]:
    return group[0].step, group[0].group


def _size(run_dir: Path, group: Group) -> int:
    """Bytes of a group's clips in the page (base64); 0 when it has none on disk."""
    paths = [run_dir / record.audio for record in group if record.audio]
    return sum(-(-path.stat().st_size // 3) * 4 for path in paths if path.is_file())


def _data_uri(found: Clip) -> str:
    return f"data:{found.media};base64,{b64encode(found.content).decode('ascii')}"


def _group(run_dir: Path, group: Group, views: Sequence[Data], playing: Mapping[str, str]) -> Data:
    first = group[0]
    replies = [
        {**view, "silent": _silent(run_dir, record, playing)} for view, record in zip(views, group, strict=True)
    ]
    return {
        "group": first.group,
        "prompt_id": first.prompt_id,
        "question": first.question,
        "expected": first.expected,
        "style": first.style,
        "replies": replies,
    }


def _silent(run_dir: Path, record: RolloutRecord, playing: Mapping[str, str]) -> str | None:
    """Why a reply has no player; None when it has one."""
    if record.audio is None:
        return "audio not kept at this step"
    if record.audio in playing:
        return None
    found = clip(run_dir, record.audio)
    return found if isinstance(found, str) else "audio left out: page budget"


def _reply(record: RolloutRecord) -> Data:
    said, heard = differences(record.text, record.transcript)
    verdicts = {**record.scores, **{f"{axis}, second": found for axis, found in record.second.items()}}
    scores = [
        [axis, score.value, score.spread, score.judge, score.why]
        if isinstance(score, Score)
        else [axis, None, None, "", score.missing]
        for axis, score in verdicts.items()
    ]
    learner = record.learner_logps or [None] * len(record.ids)
    gaps = [
        None if ours is None or theirs is None else ours - theirs
        for ours, theirs in zip(learner, record.behaviour_logps, strict=True)
    ]
    return {
        "index": record.index,
        "version": record.policy_version,
        "said": said,
        "heard": heard,
        "finish": record.finish,
        "audio": record.audio,
        "scores": scores,
        "reward": record.reward,
        "missing": record.missing,
        "advantage": record.advantage,
        "dropped": record.dropped,
        "channels": record.channels,
        "ids": record.ids,
        "logps": [_digits(value, 3) for value in record.behaviour_logps],
        "gaps": [_digits(value, 2) for value in gaps],
        "weights": None if record.weights is None else _runs([_digits(value, 4) for value in record.weights]),
    }


def _digits(value: float | None, significant: int) -> float | None:
    return None if value is None else float(f"{value:.{significant}g}")


def _runs(values: Sequence[float | None]) -> list[tuple[float | None, int]]:
    """Run lengths: a reply's weight is the same over long stretches."""
    return [(value, len(tuple(run))) for value, run in groupby(values)]


Words = list[tuple[str, bool]]


def differences(said: str, heard: str | None) -> tuple[Words, Words | None]:
    """The words of both sides, each with whether it has no counterpart. Case and punctuation do not count."""
    left = said.split()
    if heard is None:
        return [(word, False) for word in left], None
    right = heard.split()
    matcher = SequenceMatcher(None, [_bare(word) for word in left], [_bare(word) for word in right], autojunk=False)
    same = matcher.get_matching_blocks()
    kept = {block.a + n for block in same for n in range(block.size)}
    found = {block.b + n for block in same for n in range(block.size)}
    return [(word, n not in kept) for n, word in enumerate(left)], [
        (word, n not in found) for n, word in enumerate(right)
    ]


def _bare(word: str) -> str:
    return "".join(letter for letter in word.casefold() if letter.isalnum()) or word


def listen(run_dir: Path, samples: Sequence[Sample]) -> tuple[Data, dict[str, str]]:
    """Held-out replies before and after, paired by row, and their clips."""
    pairs: dict[str, dict[str, Sample]] = {}
    for sample in samples:
        pairs.setdefault(sample.row_id, {})[sample.when] = sample
    clips = {sample.audio: clip(run_dir, sample.audio) for sample in samples if sample.audio}
    uris = {path: _data_uri(found) for path, found in clips.items() if isinstance(found, Clip)}
    sides = [tuple(pair.values()) for pair in pairs.values()]
    shown = within(
        [sides],
        lambda pair: sum(len(uris.get(sample.audio or "", "")) for sample in pair) + 500,
        SAMPLE_BYTES,
    )
    rows = [_pair({sample.when: sample for sample in pair}, uris, clips) for pair in shown]
    note = (
        f"{len(sides) - len(shown)} of {len(sides)} pairs are left out (page budget)"
        if len(shown) < len(sides)
        else None
    )
    kept = {sample.audio for pair in shown for sample in pair}
    return {"pairs": rows, "note": note}, {path: uri for path, uri in uris.items() if path in kept}


def _pair(pair: Mapping[str, Sample], uris: Mapping[str, str], clips: Mapping[str, Clip | str]) -> Data:
    first = next(iter(pair.values()))
    sides: Data = {}
    for when, sample in pair.items():
        said, heard = differences(sample.text, sample.transcript)
        problem = clips.get(sample.audio) if sample.audio else "no audio"
        sides[when] = {
            "said": said,
            "heard": heard,
            "right": sample.right,
            "audio": sample.audio,
            "silent": problem if isinstance(problem, str) else None,
        }
    return {
        "row_id": first.row_id,
        "question": first.question,
        "expected": first.expected,
        "style": first.style,
        **sides,
    }


def happened(events: Sequence[Event]) -> Data:
    """Counts by kind and the latest events with their reasons."""
    counts: Counter[str] = Counter()
    for event in events:
        counts[event.kind] += event.count
    rows = [
        {
            "time": datetime.fromtimestamp(event.time, UTC).isoformat(" ", "seconds").removesuffix("+00:00"),
            "step": event.step,
            "kind": event.kind,
            "detail": event.detail,
            "count": event.count,
            "more": " ".join(f"{key}={value}" for key, value in (event.model_extra or {}).items()),
        }
        for event in events[-MOST_EVENTS:]
    ]
    note = (
        f"the first {len(events) - len(rows)} of {len(events)} events are left out"
        if len(rows) < len(events)
        else None
    )
    return {"counts": counts.most_common(), "rows": rows, "note": note}


def browsed(steps: Sequence[int], with_audio: Sequence[int]) -> list[int]:
    """Steps the browser offers: up to 8 that kept audio, and up to 8 others evenly spaced."""
    return sorted({*spaced(with_audio, 8), *spaced(steps, 8)})
