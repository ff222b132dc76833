"""Run directory -> one self-contained HTML page.

Invariants: the page asks for nothing (its CSP forbids every request); everything that comes from the run
enters as JSON in a data block and leaves only as text, so a reply that says <script> stays words; the page
is at most 10 MB; a run directory that is partial or still growing gives a page that says what is missing.
"""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from string import Template

from pydantic import TypeAdapter

from report import browser, curves, diagnostics, judges, read, table
from report.curves import Data
from report.records import Evaluation, Event, HeldOutReply, Sample
from speech.files import write_whole

HERE = Path(__file__).parent
SCRIPTS = (
    "elements.js",
    "charts.js",
    "replies.js",
    "judges.js",
    "diagnostics.js",
    "page.js",
)  # one script in the page; the last one runs it
STYLES = ("page.css",)
MOST_FILES = 8  # rollout files on each side of the early/late histograms


def build(run_dir: Path) -> Path:
    """Write ``run_dir/report.html`` (whole or not at all) and return its path.

    ValueError: no such run directory, or a file in it that is malformed, as file:line.
    """
    if not run_dir.is_dir():
        raise ValueError(f"run directory must exist: got {run_dir}")
    target = run_dir / "report.html"
    write_whole(target, render(collect(run_dir)))
    return target


def collect(run_dir: Path) -> Data:
    """Everything the page shows, as JSON values."""
    config = read.config(run_dir)
    metrics = read.metric_rows(run_dir / "metrics.jsonl")
    evaluations = read.lines(run_dir / "evaluations.jsonl", TypeAdapter(Evaluation))
    samples = read.lines(run_dir / "samples.jsonl", TypeAdapter(Sample))
    events = read.lines(run_dir / "events.jsonl", TypeAdapter(Event))
    listening, sample_clips = browser.listen(run_dir, samples.rows)
    rollouts, rollout_clips = _rollouts(run_dir, config)
    judged = judges.judges(run_dir, metrics.rows, config.scale if config else None)
    elsewhere = judges.drawn(metrics.rows) | diagnostics.drawn(metrics.rows)
    drawn = curves.curves(metrics.rows, evaluations.rows, elsewhere)
    return {
        "head": _head(run_dir, config, metrics.rows[-1] if metrics.rows else None),
        "table": _table(evaluations, _held_out(run_dir)),
        "curves": {**drawn, "notes": _notes(metrics.note, evaluations.note, drawn["note"])},
        "diagnostics": diagnostics.diagnostics(run_dir, metrics.rows),
        "judges": judged,
        **rollouts,
        "samples": {**listening, "notes": _notes(samples.note, listening["note"])},
        "events": {**browser.happened(events.rows), "notes": _notes(events.note)},
        "audio": {**rollout_clips, **sample_clips},
    }


def _notes(*notes: object) -> list[str]:
    return [str(note) for note in notes if note]


def _head(run_dir: Path, config: read.RunConfigFile | None, last: Mapping[str, float | None] | None) -> Data:
    """Name, facts, versions and the whole config."""
    versions = read.versions(run_dir)
    done = last["step"] if last else None
    known = config or read.RunConfigFile()
    planned = known.run.steps
    steps = f"{0 if done is None else int(done)} of {'?' if planned is None else planned}"
    facts = [
        ("algorithm", known.algo.name),
        ("preference on", known.algo.preferred),
        ("steps", steps),
        ("seed", known.run.seed),
        ("model", known.model.family),
        ("checkpoint", known.model.path),
        ("engine", known.rollout.engine),
        ("prompts per step", known.rollout.prompts_per_step),
        ("group size", known.rollout.group_size),
        ("staleness", known.run.staleness),
    ]
    notes = _notes(
        None if config else "config.yaml is not there",
        "versions.json is not there" if versions is None else None,
    )
    return {
        "name": known.run.name or run_dir.resolve().name,
        "facts": [fact for fact in facts if fact[1]],
        "config": known.text,
        "versions": versions or [],
        "notes": notes,
    }


def _held_out(run_dir: Path) -> tuple[table.Replies, table.Replies]:
    """The judged replies to the test prompts before and after; empty where they are not there."""
    adapter = TypeAdapter(HeldOutReply)
    before, after = (
        read.lines(run_dir / "heldout" / f"test_{when}.jsonl", adapter).rows for when in ("before", "after")
    )
    return before, after


def _table(evaluations: read.Lines[Evaluation], replies: tuple[table.Replies, table.Replies]) -> Data:
    before, after = table.pair(evaluations.rows)
    rows = [[row.label, *row.cells(), row.better] for row in table.rows(before, after, replies)]
    absent = [
        f"no test evaluation {name} training" for name, side in (("before", before), ("after", after)) if side is None
    ]
    heads = [[f"step {side.step}", side.count] if side else None for side in (before, after)]
    return {"rows": rows, "heads": heads, "notes": _notes(evaluations.note, *absent)}


def _rollouts(run_dir: Path, config: read.RunConfigFile | None) -> tuple[Data, dict[str, str]]:
    """Histograms and browser, from as few rollout files as they need."""
    files = read.rollout_files(run_dir)
    steps = list(files)
    quarter = max(1, min(MOST_FILES, len(steps) // 4))
    early, late = steps[:quarter], steps[quarter:][-quarter:]
    offered = browser.browsed(steps, [step for step in steps if (run_dir / "audio" / files[step].stem).is_dir()])
    found = {step: read.rollouts(files[step]) for step in sorted({*early, *late, *offered})}
    torn = [lines.note for lines in found.values() if lines.note]
    start, end = ([record for step in side for record in found[step].rows] for side in (early, late))
    scale = config.scale if config else None
    browsing, clips = browser.browser(run_dir, {step: found[step].rows for step in offered})
    some = f"{len(offered)} of {len(steps)} recorded steps can be picked" if len(offered) < len(steps) else None
    missing = None if files else "rollouts/ has no step files"
    return {
        "histograms": {
            "axes": curves.histograms(start, end, scale),
            "spans": [curves.span(early), curves.span(late)],
            "notes": _notes(missing),
        },
        "rollouts": {**browsing, "notes": _notes(missing, some, browsing["note"], *torn)},
    }, clips


def render(data: Mapping[str, object], scripts: Sequence[str] = SCRIPTS, styles: Sequence[str] = STYLES) -> str:
    """The page. Script and style are admitted by hash; no character of the data is markup."""
    style = "".join(_asset(name) for name in styles)
    script = "{" + "".join(_asset(name) for name in scripts) + "}"
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "img-src data:",
            "media-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    return Template(_asset("page.html")).substitute(policy=policy, style=style, script=script, data=escaped(data))


def escaped(data: Mapping[str, object]) -> str:
    """JSON that holds no character with a meaning in HTML: ASCII only, and < > & as \\u escapes."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return HERE.joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"sha256-{b64encode(sha256(content.encode('utf-8')).digest()).decode('ascii')}"
