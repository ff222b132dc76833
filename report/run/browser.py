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

from report.read import AudioClip, read_clip
from report.records import Event, RolloutRecord, Sample, ScoreRecord
from report.run.choose import pick_evenly_spaced, take_within_budget
from report.run.curves import PageData

TOKEN_BUDGET_BYTES, CLIP_BUDGET_BYTES, SAMPLE_BUDGET_BYTES = 3_200_000, 4_400_000, 1_500_000
MAX_EVENT_ROWS = 300

RecordGroup = tuple[RolloutRecord, ...]


def group_records(records: Sequence[RolloutRecord]) -> list[RecordGroup]:
    """One step's records, sorted by group, as groups."""
    return [tuple(members) for _, members in groupby(records, key=lambda record: record.group)]


def build_rollout_browser(
    run_dir: Path, by_step: Mapping[int, Sequence[RolloutRecord]]
) -> tuple[PageData, dict[str, str]]:
    """The rollout browser's groups by step, and the clips they play by path.

    Groups whose audio is on disk come first: a group to listen to says more than one to read.
    """
    groups_by_step = {step: group_records(records) for step, records in by_step.items()}
    views = {
        _group_key(group): [_format_reply(record) for record in group]
        for members in groups_by_step.values()
        for group in members
    }
    sizes = {
        _group_key(group): _count_clip_bytes(run_dir, group)
        for members in groups_by_step.values()
        for group in members
    }
    queues = [sorted(members, key=lambda group: not sizes[_group_key(group)]) for members in groups_by_step.values()]
    drawn = take_within_budget(queues, lambda group: len(json.dumps(views[_group_key(group)])), TOKEN_BUDGET_BYTES)
    audible = [
        [group for group in drawn if _group_key(group)[0] == step and sizes[_group_key(group)]]
        for step in groups_by_step
    ]
    audible_groups = take_within_budget(audible, lambda group: sizes[_group_key(group)], CLIP_BUDGET_BYTES)
    paths = {record.audio for group in audible_groups for record in group if record.audio}
    playing = {
        path: _clip_to_data_uri(audio)
        for path in sorted(paths)
        if isinstance(audio := read_clip(run_dir, path), AudioClip)
    }
    steps = []
    for step, members in groups_by_step.items():
        chosen = sorted((group for group in drawn if _group_key(group)[0] == step), key=_group_key)
        shown = [_format_group(run_dir, group, views[_group_key(group)], playing) for group in chosen]
        steps.append({"step": step, "groups": shown, "left_out": len(members) - len(chosen)})
    silent = sum(len(queue) for queue in audible) - len(audible_groups)
    note = f"{silent} of {silent + len(audible_groups)} groups with audio are shown without it (page budget)"
    return {"steps": steps, "note": note if silent else None}, playing


def _group_key(group: RecordGroup) -> tuple[int, int]:
    return group[0].step, group[0].group


def _count_clip_bytes(run_dir: Path, group: RecordGroup) -> int:
    """Bytes of a group's clips in the page (base64); 0 when it has none on disk."""
    paths = [run_dir / record.audio for record in group if record.audio]
    return sum(-(-path.stat().st_size // 3) * 4 for path in paths if path.is_file())


def _clip_to_data_uri(audio: AudioClip) -> str:
    return f"data:{audio.media};base64,{b64encode(audio.content).decode('ascii')}"


def _format_group(
    run_dir: Path, group: RecordGroup, views: Sequence[PageData], playing: Mapping[str, str]
) -> PageData:
    first = group[0]
    replies = [
        {**view, "silent": _explain_silence(run_dir, record, playing)}
        for view, record in zip(views, group, strict=True)
    ]
    return {
        "group": first.group,
        "prompt_id": first.prompt_id,
        "question": first.question,
        "expected": first.expected,
        "style": first.style,
        "replies": replies,
    }


def _explain_silence(run_dir: Path, record: RolloutRecord, playing: Mapping[str, str]) -> str | None:
    """Why a reply has no player; None when it has one."""
    if record.audio is None:
        return "audio not kept at this step"
    if record.audio in playing:
        return None
    clip_or_reason = read_clip(run_dir, record.audio)
    return clip_or_reason if isinstance(clip_or_reason, str) else "audio left out: page budget"


def _format_reply(record: RolloutRecord) -> PageData:
    said, heard = diff_words(record.text, record.transcript)
    verdicts = {**record.scores, **{f"{axis}, second": verdict for axis, verdict in record.second.items()}}
    scores = [
        [axis, score.value, score.spread, score.judge, score.why]
        if isinstance(score, ScoreRecord)
        else [axis, None, None, "", score.missing]
        for axis, score in verdicts.items()
    ]
    learner = record.learner_logps or [None] * len(record.ids)
    gaps = [
        None if own is None or behaviour is None else own - behaviour
        for own, behaviour in zip(learner, record.behaviour_logps, strict=True)
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
        "logps": [_round_digits(value, 3) for value in record.behaviour_logps],
        "gaps": [_round_digits(value, 2) for value in gaps],
        "weights": None
        if record.weights is None
        else _encode_run_lengths([_round_digits(value, 4) for value in record.weights]),
    }


def _round_digits(value: float | None, significant: int) -> float | None:
    return None if value is None else float(f"{value:.{significant}g}")


def _encode_run_lengths(values: Sequence[float | None]) -> list[tuple[float | None, int]]:
    """Run lengths: a reply's weight is the same over long stretches."""
    return [(value, len(tuple(run))) for value, run in groupby(values)]


MarkedWords = list[tuple[str, bool]]


def diff_words(said: str, heard: str | None) -> tuple[MarkedWords, MarkedWords | None]:
    """The words of both sides, each with whether it has no counterpart. Case and punctuation do not count."""
    left = said.split()
    if heard is None:
        return [(word, False) for word in left], None
    right = heard.split()
    matcher = SequenceMatcher(
        None, [_strip_word(word) for word in left], [_strip_word(word) for word in right], autojunk=False
    )
    same = matcher.get_matching_blocks()
    unchanged = {block.a + n for block in same for n in range(block.size)}
    matched = {block.b + n for block in same for n in range(block.size)}
    return [(word, n not in unchanged) for n, word in enumerate(left)], [
        (word, n not in matched) for n, word in enumerate(right)
    ]


def _strip_word(word: str) -> str:
    return "".join(letter for letter in word.casefold() if letter.isalnum()) or word


def pair_samples(run_dir: Path, samples: Sequence[Sample]) -> tuple[PageData, dict[str, str]]:
    """Held-out replies before and after, paired by row, and their clips."""
    pairs: dict[str, dict[str, Sample]] = {}
    for sample in samples:
        pairs.setdefault(sample.row_id, {})[sample.when] = sample
    clips = {sample.audio: read_clip(run_dir, sample.audio) for sample in samples if sample.audio}
    uris = {path: _clip_to_data_uri(audio) for path, audio in clips.items() if isinstance(audio, AudioClip)}
    sides = [tuple(pair.values()) for pair in pairs.values()]
    shown = take_within_budget(
        [sides],
        lambda pair: sum(len(uris.get(sample.audio or "", "")) for sample in pair) + 500,
        SAMPLE_BUDGET_BYTES,
    )
    rows = [_format_sample_pair({sample.when: sample for sample in pair}, uris, clips) for pair in shown]
    note = (
        f"{len(sides) - len(shown)} of {len(sides)} pairs are left out (page budget)"
        if len(shown) < len(sides)
        else None
    )
    kept_clips = {sample.audio for pair in shown for sample in pair}
    return {"pairs": rows, "note": note}, {path: uri for path, uri in uris.items() if path in kept_clips}


def _format_sample_pair(
    pair: Mapping[str, Sample], uris: Mapping[str, str], clips: Mapping[str, AudioClip | str]
) -> PageData:
    first = next(iter(pair.values()))
    sides: PageData = {}
    for when, sample in pair.items():
        said, heard = diff_words(sample.text, sample.transcript)
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


def tabulate_events(events: Sequence[Event]) -> PageData:
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
        for event in events[-MAX_EVENT_ROWS:]
    ]
    note = (
        f"the first {len(events) - len(rows)} of {len(events)} events are left out"
        if len(rows) < len(events)
        else None
    )
    return {"counts": counts.most_common(), "rows": rows, "note": note}


def choose_browser_steps(steps: Sequence[int], with_audio: Sequence[int]) -> list[int]:
    """Steps the browser offers: up to 8 that kept audio, and up to 8 others evenly spaced."""
    return sorted({*pick_evenly_spaced(with_audio, 8), *pick_evenly_spaced(steps, 8)})
