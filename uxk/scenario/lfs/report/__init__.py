"""``report.html``: one file that tells a study, or any other run folder, without anything from elsewhere."""

from __future__ import annotations

from pathlib import Path


def add_report(folder: str | Path, out: str | Path | None = None) -> str:
    """Writes ``report.html`` into a study's folder, or to ``out``.

    Returns ``""``, or one line that says what is missing on this machine.  ConfigError for a folder that cannot be
    read, UsageError for a file that cannot be written.
    """
    from uxk.scenario.lfs.report.page import ADVICE, REPORT, available, study_page, write_page
    from uxk.scenario.lfs.report.stored import open_study

    stored, verdict = open_study(folder)
    if not available():
        return ADVICE
    manifest = stored.manifest
    page = study_page(verdict, manifest.versions, manifest.trace_sha256)
    write_page(Path(out) if out is not None else Path(folder) / REPORT, page)
    return ""
