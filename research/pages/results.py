"""Write docs/results.md from the files under research/results, and draw the curves of the training logs.

Run as ``python -m research.pages.results`` after any of those files changed; a test compares the page with them.
"""

from ase_definet.plotting.scores import draw_learning_curve
from research.pages.markdown import reflowed
from research.pages.sections import (
    accuracy,
    cell_size,
    comparisons,
    cp2k_steps,
    data_limits,
    findings,
    further_pairs,
    ionic_steps,
)
from research.paths import DOCS, RESULTS

PAGE = DOCS / "results.md"
SECTIONS = (accuracy, comparisons, cp2k_steps, ionic_steps, findings, further_pairs, data_limits, cell_size)


def page() -> str:
    """Return the whole page."""
    lines = [
        "# Results",
        "",
        "Written by `python -m research.pages.results` from the files in [research/results](../research/results); lengths in Å.",
        "Everything here was tuned and measured on the validation split; the relaxed test structures were not available to us.",
        "",
        *(line for part in SECTIONS for line in part.section()),
    ]
    return reflowed(lines)


if __name__ == "__main__":
    logs = {log.stem: log for log in sorted((RESULTS / "logs").glob("*.csv"))}
    draw_learning_curve(logs, RESULTS / "plots" / "learning_curve_deep.png")
    PAGE.write_text(page(), encoding="utf-8")
