"""What was published or asked for, beside what the recorded results say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pace_grid
import study

from report_parts import figures, page

Row = tuple[str, str, str, str]  # claim, published, ours, met: "yes", "no" or "-"
SUBJECTS = {"slice_headline": "slice", "slai": "slai", "sarathi_vllm": "sarathi and vllm"}

MORE = "pace: more utility than the best other in most cells"
LESS = "pace: in no cell less, beyond the 95 % interval"
BOUND = {
    key: f"pace: at least {b[2]:g} of the bound by {b[0]}" for key, b in figures.BOUNDS.items()
}
FACTS = {
    MORE: "settings in which pace brings more utility than the best of all others",
    LESS: "settings in which it brings less",
    BOUND["utility"]: "settings in which it brings at least 0.95 of what anyone could",
}


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def rows(results: Path) -> list[Row]:
    """pace's from its cells, the others' from their studies' summaries."""
    found = pace_rows(results)
    for folder in (*SUBJECTS, "plan_time"):
        summary = results / folder / "summary.md"
        if summary.exists():
            subject = SUBJECTS.get(folder)
            for claim, published, ours, met in study.read_claims(summary.read_text("utf-8")):
                found.append((f"{subject}: {claim}" if subject else claim, published, ours, met))
    return found


def pace_rows(results: Path) -> list[Row]:
    """What is asked of pace; nothing without cells."""
    cells = study.read_cells(results / "pace")
    groups = dict.fromkeys(tuple(c[k] for k in pace_grid.KEYS[:4]) for c in cells)
    verdicts = [
        pace_grid.verdict(pace_grid.compare(study.chosen(cells, **dict(zip(pace_grid.KEYS, g)))))
        for g in groups
    ]
    if not verdicts:
        return []
    count, more, less = len(verdicts), verdicts.count("more"), verdicts.count("LESS")

    found = [
        (MORE, "-", f"{more} of {count}", _yes(2 * more > count)),
        (LESS, "-", f"less in {less} of {count}", _yes(not less)),
    ]
    bounds = [c["bound"] for c in cells if c["bound"] and c["bound"]["valid"]]
    for key, (_, _, asked, _) in figures.BOUNDS.items():
        found_shares = (figures.bound_share(b, key) for b in bounds)
        shares = [share for share in found_shares if share is not None]
        if shares:
            good = sum(share >= asked for share in shares)
            ours = f"{good} of {len(shares)} cells; {min(shares):.2f} to {max(shares):.2f}"
            found.append((BOUND[key], "-", ours, _yes(good == len(shares))))
    return found


def facts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Numbers for the head of the page."""
    found = [
        (ours.partition(" cells")[0].removeprefix("less in "), FACTS[claim])
        for claim, _, ours, _ in rows
        if claim in FACTS
    ]
    judged = [met for *_, met in rows if met != "-"]
    return [*found, (f"{judged.count('yes')} of {len(judged)}", "claims met, listed at the end")]


def section(rows: Sequence[Row]) -> page.Section:
    """The table."""
    return page.Section(
        "claims",
        "Every claim, met or not",
        "Published claims, and what was asked of our own work. Why a claim is not met stands in "
        "the summary of its study.",
        table=page.table(("claim", "published", "ours", "met"), rows),
    )
