"""study.json of a study: the code with which it was begun. It goes on with no other.

Invariant: all runs of one folder are of one source hash (actors/run/provenance.py), as far as it was recorded.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from actors.errors import UserError
from actors.run.provenance import collect_versions
from store.files import replace_atomically


class StudySource(BaseModel):
    """The code of the first start. ``commit``: None where there was no git."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    commit: str | None


def pin_study_source(folder: Path) -> None:
    """Record the code at the first start. UserError: a later start with other code."""
    versions, file = collect_versions(), folder / "study.json"
    now = StudySource(source=versions["source"], commit=versions["commit"])
    if not file.exists():
        with replace_atomically(file) as unfinished:
            unfinished.write_text(now.model_dump_json() + "\n")
        return
    try:
        then = StudySource.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{file}: must be what a study wrote at its first start: {first['msg']}") from None
    if then.source != now.source:
        remedy = f"git checkout {then.commit}" if then.commit else "bring that code back"
        raise UserError(
            f"{folder}: was begun with source {then.source}, this is {now.source}: {remedy} "
            "(with what was changed in it then) to go on, or choose another --to; --page only draws"
        )
