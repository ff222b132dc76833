"""Diagnoses as pictures over the parts of the model: maps of every step, and lines, early against late.

Invariant: a figure that a diagnosis lacks is a gap; a mean is over the diagnoses that have it.
"""

from collections.abc import Sequence
from math import exp, log

from report.records import DiagnosisRecord
from report.run.choose import pick_evenly_spaced
from report.run.curves import ChartPanel, PageData, build_chart, format_step_span, round_for_page

MAX_AXIS_MARKS = 9  # of parts below a chart

DiagnosisRecords = Sequence[DiagnosisRecord]
LayerSeries = tuple[str, DiagnosisRecords, str, str]  # label, diagnoses, field of a part, colour class

LAYER_CHARTS = (
    ("Text / audio, by layer", "text_audio_ratio"),
    ("Text · audio, by layer", "text_audio_cosine"),
    ("Reference answers · text, by layer", "sft_text_cosine"),
)


def build_layer_maps(looks: DiagnosisRecords) -> list[PageData]:
    """Part of the model x step, for the ratio and the cosine. No diagnosis: none."""
    if not looks:
        return []
    ratio, cosine = "ratio of gradient norms; deepest from 8 to 1 on", "cosine of the two gradients"
    return [
        _build_layer_map("Text / audio, by layer and step", ratio, looks, "text_audio_ratio"),
        _build_layer_map("Text · audio, by layer and step", cosine, looks, "text_audio_cosine"),
    ]


def _build_layer_map(title: str, hint: str, looks: DiagnosisRecords, field: str) -> PageData:
    names = list_part_names(looks)
    return {
        "kind": "map",
        "title": title,
        "hint": hint,
        "scale": field.rpartition("_")[2],
        "rows": names,
        "marks": [shorten_part_name(name) for name in names],
        "steps": [look.step for look in looks],
        "values": [[round_for_page(get_part_figure(look, name, field)) for look in looks] for name in names],
    }


def build_layer_charts(looks: DiagnosisRecords) -> list[PageData]:
    """Ratio and cosines by layer, early against late, and the norms as they are late. No diagnosis: none."""
    if not looks:
        return []
    quarter = max(1, len(looks) // 4)
    early, late = looks[:quarter], looks[quarter:][-quarter:]
    sides = [("early", early, "c0"), ("late", late, "c1")] if late else [("early", early, "c1")]
    when = "; ".join(f"{name}: {format_step_span([look.step for look in side])}" for name, side, _ in sides)
    _, last, _ = sides[-1]
    norms = [
        ("text", last, "text", "c1"),
        ("audio", last, "audio", "c2"),
        ("reference answers", last, "sft", "c3"),
    ]
    return [
        *(
            _build_layer_chart(title, when, [(name, side, field, look) for name, side, look in sides])
            for title, field in LAYER_CHARTS
        ),
        _build_layer_chart("Gradient norm, by layer", str(format_step_span([look.step for look in last])), norms),
    ]


def _build_layer_chart(title: str, hint: str, series: Sequence[LayerSeries]) -> PageData:
    names = list_part_names(series[0][1])
    table = {
        label: [average_figure(field, [get_part_figure(look, name, field) for look in looks]) for name in names]
        for label, looks, field, _ in series
    }
    known = [(label, label, look) for label, _, _, look in series]
    places = [float(place) for place in range(len(names))]
    shown = set(pick_evenly_spaced(range(len(names)), MAX_AXIS_MARKS))
    field = series[0][2]
    rule = {"rule": 1 if field.endswith("ratio") else 0} if "_" in field else {}  # equal, orthogonal
    return {
        **build_chart(ChartPanel(title, hint, (), zero=True), known, places, table),
        "names": names,
        "marks": [shorten_part_name(name) if place in shown else "" for place, name in enumerate(names)],
        **rule,
    }


def list_part_names(looks: DiagnosisRecords) -> list[str]:
    """The parts of the model, from input to output."""
    return [part.name for part in looks[-1].layers]


def shorten_part_name(name: str) -> str:
    """A part's name, as short as an axis needs it."""
    return "emb" if name.startswith("embedding") else name.removeprefix("layer ")


def get_part_figure(look: DiagnosisRecord, name: str, field: str) -> float | None:
    """One number of one part."""
    value: float | None = next((getattr(part, field) for part in look.layers if part.name == name), None)
    return value


def average_figure(field: str, values: Sequence[float | None]) -> float | None:
    """The mean of cosines, the geometric mean of what is positive; of nothing, None."""
    if field.endswith("cosine"):
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None
    logs = [log(value) for value in values if value]
    return exp(sum(logs) / len(logs)) if logs else None
