"""Diagnoses as pictures over the parts of the model: maps of every step, and lines, early against late.

Invariant: a figure that a diagnosis lacks is a gap; a mean is over the diagnoses that have it.
"""

from collections.abc import Sequence
from math import exp, log

from report.choose import spaced
from report.curves import Data, Panel, chart, short, span
from report.records import Diagnosis

MOST_MARKS = 9  # of parts below a chart

Looks = Sequence[Diagnosis]
Series = tuple[str, Looks, str, str]  # label, diagnoses, field of a part, colour class

OVER_PARTS = (
    ("Text / audio, by layer", "text_audio_ratio"),
    ("Text · audio, by layer", "text_audio_cosine"),
    ("Reference answers · text, by layer", "sft_text_cosine"),
)


def maps(looks: Looks) -> list[Data]:
    """Part of the model x step, for the ratio and the cosine. No diagnosis: none."""
    if not looks:
        return []
    ratio, cosine = "ratio of gradient norms; deepest from 8 to 1 on", "cosine of the two gradients"
    return [
        _map("Text / audio, by layer and step", ratio, looks, "text_audio_ratio"),
        _map("Text · audio, by layer and step", cosine, looks, "text_audio_cosine"),
    ]


def _map(title: str, hint: str, looks: Looks, field: str) -> Data:
    names = names_of(looks)
    return {
        "kind": "map",
        "title": title,
        "hint": hint,
        "scale": field.rpartition("_")[2],
        "rows": names,
        "marks": [mark(name) for name in names],
        "steps": [look.step for look in looks],
        "values": [[short(figure(look, name, field)) for look in looks] for name in names],
    }


def lines(looks: Looks) -> list[Data]:
    """Ratio and cosines by layer, early against late, and the norms as they are late. No diagnosis: none."""
    if not looks:
        return []
    quarter = max(1, len(looks) // 4)
    early, late = looks[:quarter], looks[quarter:][-quarter:]
    sides = [("early", early, "c0"), ("late", late, "c1")] if late else [("early", early, "c1")]
    when = "; ".join(f"{name}: {span([look.step for look in side])}" for name, side, _ in sides)
    _, last, _ = sides[-1]
    norms = [
        ("text", last, "text", "c1"),
        ("audio", last, "audio", "c2"),
        ("reference answers", last, "sft", "c3"),
    ]
    return [
        *(
            _lines(title, when, [(name, side, field, look) for name, side, look in sides])
            for title, field in OVER_PARTS
        ),
        _lines("Gradient norm, by layer", str(span([look.step for look in last])), norms),
    ]


def _lines(title: str, hint: str, series: Sequence[Series]) -> Data:
    names = names_of(series[0][1])
    table = {
        label: [middle(field, [figure(look, name, field) for look in looks]) for name in names]
        for label, looks, field, _ in series
    }
    known = [(label, label, look) for label, _, _, look in series]
    places = [float(place) for place in range(len(names))]
    shown = set(spaced(range(len(names)), MOST_MARKS))
    field = series[0][2]
    rule = {"rule": 1 if field.endswith("ratio") else 0} if "_" in field else {}  # equal, orthogonal
    return {
        **chart(Panel(title, hint, (), zero=True), known, places, table),
        "names": names,
        "marks": [mark(name) if place in shown else "" for place, name in enumerate(names)],
        **rule,
    }


def names_of(looks: Looks) -> list[str]:
    """The parts of the model, from input to output."""
    return [part.name for part in looks[-1].layers]


def mark(name: str) -> str:
    """A part's name, as short as an axis needs it."""
    return "emb" if name.startswith("embedding") else name.removeprefix("layer ")


def figure(look: Diagnosis, name: str, field: str) -> float | None:
    """One number of one part."""
    found: float | None = next((getattr(part, field) for part in look.layers if part.name == name), None)
    return found


def middle(field: str, values: Sequence[float | None]) -> float | None:
    """The mean of cosines, the geometric mean of what is positive; of nothing, None."""
    if field.endswith("cosine"):
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None
    logs = [log(value) for value in values if value]
    return exp(sum(logs) / len(logs)) if logs else None
