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

from report import read
from report.records import Evaluation, Event, HeldOutReply, Sample
from report.run import browser, curves, diagnostics, judges, table
from report.run.curves import PageData
from store.files import write_atomically
from store.lines import JsonLines, read_json_lines

ASSET_FOLDER = Path(__file__).resolve().parents[1] / "web"
RUN_PAGE_SCRIPTS = (
    "elements.js",
    "charts.js",
    "replies.js",
    "judges.js",
    "diagnostics.js",
    "page.js",
)  # one script in the page; the last one runs it
RUN_PAGE_STYLES = ("page.css",)
MAX_HISTOGRAM_FILES = 8  # rollout files on each side of the early/late histograms


def write_run_page(run_dir: Path) -> Path:
    """Write ``run_dir/report.html`` (whole or not at all) and return its path.

    ValueError: no such run directory, or a file in it that is malformed, as file:line.
    """
    if not run_dir.is_dir():
        raise ValueError(f"run directory must exist: got {run_dir}")
    target = run_dir / "report.html"
    write_atomically(target, render_page(collect_run_data(run_dir)))
    return target


def collect_run_data(run_dir: Path) -> PageData:
    """Everything the page shows, as JSON values."""
    config = read.read_run_config(run_dir)
    metrics = read.read_metric_rows(run_dir / "metrics.jsonl")
    evaluations = read_json_lines(run_dir / "evaluations.jsonl", TypeAdapter(Evaluation))
    samples = read_json_lines(run_dir / "samples.jsonl", TypeAdapter(Sample))
    events = read_json_lines(run_dir / "events.jsonl", TypeAdapter(Event))
    listening, sample_clips = browser.pair_samples(run_dir, samples.rows)
    rollouts, rollout_clips = _build_rollouts(run_dir, config)
    judged = judges.build_judges_section(run_dir, metrics.rows, config.scale if config else None)
    elsewhere = judges.list_judge_metrics(metrics.rows) | diagnostics.list_diagnostic_metrics(metrics.rows)
    drawn = curves.build_run_curves(metrics.rows, evaluations.rows, elsewhere)
    return {
        "head": _build_head(run_dir, config, metrics.rows[-1] if metrics.rows else None),
        "table": _build_table(evaluations, _read_test_replies(run_dir)),
        "curves": {**drawn, "notes": _drop_empty_notes(metrics.note, evaluations.note, drawn["note"])},
        "diagnostics": diagnostics.build_diagnostics_section(run_dir, metrics.rows),
        "judges": judged,
        **rollouts,
        "samples": {**listening, "notes": _drop_empty_notes(samples.note, listening["note"])},
        "events": {**browser.tabulate_events(events.rows), "notes": _drop_empty_notes(events.note)},
        "audio": {**rollout_clips, **sample_clips},
    }


def _drop_empty_notes(*notes: object) -> list[str]:
    return [str(note) for note in notes if note]


def _build_head(run_dir: Path, config: read.RunConfigFile | None, last: Mapping[str, float | None] | None) -> PageData:
    """Name, facts, versions and the whole config."""
    versions = read.read_versions(run_dir)
    last_step = last["step"] if last else None
    known = config or read.RunConfigFile()
    planned = known.run.steps
    steps = f"{0 if last_step is None else int(last_step)} of {'?' if planned is None else planned}"
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
    notes = _drop_empty_notes(
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


def _read_test_replies(run_dir: Path) -> tuple[table.HeldOutReplies, table.HeldOutReplies]:
    """The judged replies to the test prompts before and after; empty where they are not there."""
    adapter = TypeAdapter(HeldOutReply)
    before, after = (
        read_json_lines(run_dir / "heldout" / f"test_{when}.jsonl", adapter).rows for when in ("before", "after")
    )
    return before, after


def _build_table(
    evaluations: JsonLines[Evaluation], replies: tuple[table.HeldOutReplies, table.HeldOutReplies]
) -> PageData:
    before, after = table.find_before_after(evaluations.rows)
    rows = [[row.label, *row.cells(), row.better] for row in table.build_before_after_rows(before, after, replies)]
    absent = [
        f"no test evaluation {name} training" for name, side in (("before", before), ("after", after)) if side is None
    ]
    heads = [[f"step {side.step}", side.count] if side else None for side in (before, after)]
    return {"rows": rows, "heads": heads, "notes": _drop_empty_notes(evaluations.note, *absent)}


def _build_rollouts(run_dir: Path, config: read.RunConfigFile | None) -> tuple[PageData, dict[str, str]]:
    """Histograms and browser, from as few rollout files as they need."""
    files = read.list_rollout_files(run_dir)
    steps = list(files)
    quarter = max(1, min(MAX_HISTOGRAM_FILES, len(steps) // 4))
    early, late = steps[:quarter], steps[quarter:][-quarter:]
    offered = browser.choose_browser_steps(
        steps, [step for step in steps if (run_dir / "audio" / files[step].stem).is_dir()]
    )
    lines_by_step = {step: read.read_rollouts(files[step]) for step in sorted({*early, *late, *offered})}
    torn = [lines.note for lines in lines_by_step.values() if lines.note]
    start, end = ([record for step in side for record in lines_by_step[step].rows] for side in (early, late))
    scale = config.scale if config else None
    browsing, clips = browser.build_rollout_browser(run_dir, {step: lines_by_step[step].rows for step in offered})
    some = f"{len(offered)} of {len(steps)} recorded steps can be picked" if len(offered) < len(steps) else None
    missing = None if files else "rollouts/ has no step files"
    return {
        "histograms": {
            "axes": curves.build_histograms(start, end, scale),
            "spans": [curves.format_step_span(early), curves.format_step_span(late)],
            "notes": _drop_empty_notes(missing),
        },
        "rollouts": {**browsing, "notes": _drop_empty_notes(missing, some, browsing["note"], *torn)},
    }, clips


def render_page(
    data: Mapping[str, object], scripts: Sequence[str] = RUN_PAGE_SCRIPTS, styles: Sequence[str] = RUN_PAGE_STYLES
) -> str:
    """The page. Script and style are admitted by hash; no character of the data is markup."""
    style = "".join(_read_asset(name) for name in styles)
    script = "{" + "".join(_read_asset(name) for name in scripts) + "}"
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash_content(script)}'",
            f"style-src '{_hash_content(style)}'",
            "img-src data:",
            "media-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    return Template(_read_asset("page.html")).substitute(
        policy=policy, style=style, script=script, data=escape_json(data)
    )


def escape_json(data: Mapping[str, object]) -> str:
    """JSON that holds no character with a meaning in HTML: ASCII only, and < > & as \\u escapes."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _read_asset(name: str) -> str:
    return ASSET_FOLDER.joinpath(name).read_text(encoding="utf-8")


def _hash_content(content: str) -> str:
    return f"sha256-{b64encode(sha256(content.encode('utf-8')).digest()).decode('ascii')}"
