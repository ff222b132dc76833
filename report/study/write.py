"""The files of a study.

DIR/study.html    self-contained; methods, Pareto plot, curves, arms, cells
DIR/study.csv     a row per arm, method and measure
DIR/cells.csv     a row per run
DIR/versions.json packages, commit and source of the runs; only where all agree
"""

from pathlib import Path

from report.study.findings import StudyFindings
from store.files import replace_atomically


def write_study_files(findings: StudyFindings, to: Path, stem: str = "study") -> list[Path]:
    """Page and tables, each whole or not at all. ValueError: ``to`` is a run directory."""
    from report.run.page import render_page
    from report.study import data as study_data
    from report.study import tables as study_tables

    if (to / "config.yaml").exists():
        raise ValueError(f"--to: must not be a run directory, its files would be mixed with these: got {to}")
    to.mkdir(parents=True, exist_ok=True)
    parts = {
        f"{stem}.html": render_page(
            study_data.build_study_data(findings), study_data.STUDY_PAGE_SCRIPTS, study_data.STUDY_PAGE_STYLES
        ).encode(),
        f"{stem}.csv": study_tables.measures_to_csv(findings).encode(),
        "cells.csv": study_tables.cells_to_csv(findings).encode(),
    }
    agreed = {tuple(trial.versions.items()) for trial in findings.trials.values()}
    version_files = [trial.run / "versions.json" for trial in findings.trials.values()]
    if len(agreed) == 1 and version_files[0].is_file():
        parts["versions.json"] = version_files[0].read_bytes()
    else:
        (to / "versions.json").unlink(missing_ok=True)  # of an earlier drawing
    for name, content in parts.items():
        with replace_atomically(to / name) as unfinished:
            unfinished.write_bytes(content)
    return [to / name for name in parts]
