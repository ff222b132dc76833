"""The diagnostics of a run in one section: what there is to learn from, where it pushes, how far it got.

metrics.jsonl and diagnostics.jsonl in, JSON values out. Invariant: a figure that was not measured is None all
the way to the page; a run without diagnoses says so.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from report.records import DiagnosisRecord
from report.run import layers
from report.run.choose import pick_evenly_spaced
from report.run.curves import MAX_CURVE_POINTS, ChartPanel, MetricColumn, PageData, build_chart, rows_to_columns
from store.lines import read_json_lines

MAX_MAPPED_DIAGNOSES = 48  # columns of a map
DROPPED_PREFIX = "groups/dropped_"
DIVERSITY_PREFIX = "diversity/"

DiagnosticMetricRows = Sequence[Mapping[str, float | None]]

GATE_PANEL = ChartPanel(
    "Lambda's two gates",
    "mean over groups; lambda follows their product",
    (
        ("gate/direction", "direction: is the best reply good?", "c3"),
        ("gate/information", "information: do the replies differ?", "c4"),
    ),
    zero=True,
)
DIVERSITY_PANEL = ChartPanel(
    "Different replies in a group",
    "share; the fewer differ, the less there is to prefer",
    (
        ("diversity/text", "texts", "c1"),
        ("diversity/audio", "audio sequences", "c2"),
        ("diversity/equal_groups", "groups of equal rewards", "c0"),
    ),
    zero=True,
)
WHOLE_MODEL_PANELS = (
    ChartPanel(
        "Text / audio, whole model",
        "ratio of the norms of the two gradients",
        (("grad/text_audio_ratio", "text / audio", "c1"),),
        zero=True,
    ),
    ChartPanel(
        "Cosines, whole model",
        "between gradients; 0 is orthogonal",
        (
            ("grad/text_audio_cosine", "text · audio", "c4"),
            ("grad/sft_text_cosine", "reference answers · text", "c3"),
        ),
        zero=True,
    ),
)
SHIFT_PANELS = tuple(
    ChartPanel(
        title,
        "log-prob minus the start policy's, nats per token; thin: mean of the absolute value",
        (
            (f"shift/{name}_text", "text", "c1"),
            (f"shift/{name}_audio", "audio", "c2"),
            (f"shift/{name}_text_abs", "|text|", "c1 thin"),
            (f"shift/{name}_audio_abs", "|audio|", "c2 thin"),
        ),
        zero=True,
    )
    for name, title in (
        ("rollout", "Shift on the rollouts"),
        ("anchor", "Shift on the reference answers"),
        ("chosen", "Shift on the chosen replies of the pairs"),
        ("rejected", "Shift on the rejected replies of the pairs"),
    )
)


def list_diagnostic_metrics(rows: DiagnosticMetricRows) -> set[str]:
    """The metrics that this section draws."""
    names = {name for row in rows for name in row if name.startswith((DIVERSITY_PREFIX, "groups/"))}
    return names | {
        name
        for panel in (GATE_PANEL, DIVERSITY_PANEL, *WHOLE_MODEL_PANELS, *SHIFT_PANELS)
        for name, *_ in panel.series
    }


def build_diagnostics_section(run_dir: Path, rows: DiagnosticMetricRows) -> PageData:
    """The section. ValueError: a malformed line of diagnostics.jsonl, as file:line."""
    diagnosis_lines = read_json_lines(run_dir / "diagnostics.jsonl", TypeAdapter(DiagnosisRecord))
    by_step = {look.step: look for look in diagnosis_lines.rows}  # run again after a resume: the last one counts
    looks = [by_step[step] for step in sorted(by_step)]
    mapped = pick_evenly_spaced(looks, MAX_MAPPED_DIAGNOSES)
    some = f"{len(mapped)} of {len(looks)} diagnoses are mapped, evenly spaced"
    torn = diagnosis_lines.note if (run_dir / "diagnostics.jsonl").is_file() else None
    return {
        "notes": [note for note in (torn, some if len(mapped) < len(looks) else None) if note],
        "learning": chart_learning_signal(pick_evenly_spaced(rows, MAX_CURVE_POINTS)),
        "gradients": [*_chart_logged_steps(rows, WHOLE_MODEL_PANELS), *layers.build_layer_charts(looks)],
        "maps": layers.build_layer_maps(mapped),
        "shifts": _chart_logged_steps(rows, SHIFT_PANELS),
    }


def chart_learning_signal(rows: DiagnosticMetricRows) -> list[PageData]:
    """What there is to learn from at each step; of what the run did not log there is no chart."""
    steps, table = rows_to_columns(rows)
    axes = sorted(
        name
        for name in table
        if name.startswith(DIVERSITY_PREFIX) and name not in {name for name, *_ in DIVERSITY_PANEL.series}
    )
    series = [(name, name.removeprefix(DIVERSITY_PREFIX), f"c{n % 6}") for n, name in enumerate(axes)]
    spread = ChartPanel("Diversity per axis", "standard deviation within a group, in points", (), zero=True)
    charts = [
        build_chart(GATE_PANEL, GATE_PANEL.series, steps, table),
        _chart_groups(steps, table),
        build_chart(spread, series, steps, table),
        {**build_chart(DIVERSITY_PANEL, DIVERSITY_PANEL.series, steps, table), "share": True},
    ]
    return [built_chart for built_chart in charts if built_chart["series"]]


def _chart_groups(steps: list[float], table: Mapping[str, MetricColumn]) -> PageData:
    """Kept and dropped, stacked. A kind that a step does not name did not occur in it; a run that names none
    has one kind.
    """
    kept_groups = table.get("groups/kept", [None] * len(steps))
    kinds = [name for name in sorted(table) if name.startswith(DROPPED_PREFIX)] or ["groups/dropped"]
    filled = {
        name: [None if whole is None else n or 0.0 for whole, n in zip(kept_groups, table[name], strict=True)]
        for name in kinds
        if name in table
    }
    labels = [name.removeprefix(DROPPED_PREFIX).removeprefix("groups/").replace("_", " ") for name in filled]
    series = [
        ("groups/kept", "kept", "c3"),
        *zip(filled, labels, ("c2", "c0", "c4", "c5"), strict=False),
    ]
    panel = ChartPanel("Groups", "kept, and dropped by reason", (), "stack", True)
    return build_chart(panel, series, steps, {"groups/kept": kept_groups, **filled})


def _chart_logged_steps(rows: DiagnosticMetricRows, panels: Sequence[ChartPanel]) -> list[PageData]:
    """Charts over the steps that have their figures alone, so that lines join them."""
    charts = []
    for panel in panels:
        names = {name for name, *_ in panel.series}
        steps, table = rows_to_columns(pick_evenly_spaced([row for row in rows if names & set(row)], MAX_CURVE_POINTS))
        charts.append(build_chart(panel, panel.series, steps, table))
    return [built_chart for built_chart in charts if built_chart["series"]]
