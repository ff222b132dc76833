"""The diagnostics of a run in one section: what there is to learn from, where it pushes, how far it got.

metrics.jsonl and diagnostics.jsonl in, JSON values out. Invariant: a figure that was not measured is None all
the way to the page; a run without diagnoses says so.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from report import layers, read
from report.choose import spaced
from report.curves import MOST_POINTS, Column, Data, Panel, chart, columns
from report.records import Diagnosis

MOST_LOOKS = 48  # columns of a map
DROPPED = "groups/dropped_"
DIVERSITY = "diversity/"

Rows = Sequence[Mapping[str, float | None]]

GATES = Panel(
    "Lambda's two gates",
    "mean over groups; lambda follows their product",
    (
        ("gate/direction", "direction: is the best reply good?", "c3"),
        ("gate/information", "information: do the replies differ?", "c4"),
    ),
    zero=True,
)
SHARES = Panel(
    "Different replies in a group",
    "share; the fewer differ, the less there is to prefer",
    (
        ("diversity/text", "texts", "c1"),
        ("diversity/audio", "audio sequences", "c2"),
        ("diversity/equal_groups", "groups of equal rewards", "c0"),
    ),
    zero=True,
)
WHOLE = (
    Panel(
        "Text / audio, whole model",
        "ratio of the norms of the two gradients",
        (("grad/text_audio_ratio", "text / audio", "c1"),),
        zero=True,
    ),
    Panel(
        "Cosines, whole model",
        "between gradients; 0 is orthogonal",
        (
            ("grad/text_audio_cosine", "text · audio", "c4"),
            ("grad/sft_text_cosine", "reference answers · text", "c3"),
        ),
        zero=True,
    ),
)
SHIFTS = tuple(
    Panel(
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


def drawn(rows: Rows) -> set[str]:
    """The metrics that this section draws."""
    names = {name for row in rows for name in row if name.startswith((DIVERSITY, "groups/"))}
    return names | {name for panel in (GATES, SHARES, *WHOLE, *SHIFTS) for name, *_ in panel.series}


def diagnostics(run_dir: Path, rows: Rows) -> Data:
    """The section. ValueError: a malformed line of diagnostics.jsonl, as file:line."""
    found = read.lines(run_dir / "diagnostics.jsonl", TypeAdapter(Diagnosis))
    by_step = {look.step: look for look in found.rows}  # run again after a resume: the last one counts
    looks = [by_step[step] for step in sorted(by_step)]
    kept = spaced(looks, MOST_LOOKS)
    some = f"{len(kept)} of {len(looks)} diagnoses are mapped, evenly spaced"
    torn = found.note if (run_dir / "diagnostics.jsonl").is_file() else None
    return {
        "notes": [note for note in (torn, some if len(kept) < len(looks) else None) if note],
        "learning": learning(spaced(rows, MOST_POINTS)),
        "gradients": [*_sparse(rows, WHOLE), *layers.lines(looks)],
        "maps": layers.maps(kept),
        "shifts": _sparse(rows, SHIFTS),
    }


def learning(rows: Rows) -> list[Data]:
    """What there is to learn from at each step; of what the run did not log there is no chart."""
    steps, table = columns(rows)
    axes = sorted(
        name for name in table if name.startswith(DIVERSITY) and name not in {name for name, *_ in SHARES.series}
    )
    series = [(name, name.removeprefix(DIVERSITY), f"c{n % 6}") for n, name in enumerate(axes)]
    spread = Panel("Diversity per axis", "standard deviation within a group, in points", (), zero=True)
    found = [
        chart(GATES, GATES.series, steps, table),
        _groups(steps, table),
        chart(spread, series, steps, table),
        {**chart(SHARES, SHARES.series, steps, table), "share": True},
    ]
    return [one for one in found if one["series"]]


def _groups(steps: list[float], table: Mapping[str, Column]) -> Data:
    """Kept and dropped, stacked. A kind that a step does not name did not occur in it; a run that names none
    has one kind.
    """
    kept = table.get("groups/kept", [None] * len(steps))
    kinds = [name for name in sorted(table) if name.startswith(DROPPED)] or ["groups/dropped"]
    filled = {
        name: [None if whole is None else n or 0.0 for whole, n in zip(kept, table[name], strict=True)]
        for name in kinds
        if name in table
    }
    labels = [name.removeprefix(DROPPED).removeprefix("groups/").replace("_", " ") for name in filled]
    series = [
        ("groups/kept", "kept", "c3"),
        *zip(filled, labels, ("c2", "c0", "c4", "c5"), strict=False),
    ]
    panel = Panel("Groups", "kept, and dropped by reason", (), "stack", True)
    return chart(panel, series, steps, {"groups/kept": kept, **filled})


def _sparse(rows: Rows, panels: Sequence[Panel]) -> list[Data]:
    """Charts over the steps that have their figures alone, so that lines join them."""
    found = []
    for panel in panels:
        names = {name for name, *_ in panel.series}
        steps, table = columns(spaced([row for row in rows if names & set(row)], MOST_POINTS))
        found.append(chart(panel, panel.series, steps, table))
    return [one for one in found if one["series"]]
