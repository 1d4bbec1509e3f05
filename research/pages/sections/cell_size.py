"""One vacancy in ever larger cells."""

from research.experiments.cell_size import FAR, NEAR
from research.pages.markdown import length, table
from research.pages.stored import result


def section() -> list[str]:
    """Return the section."""
    content = result("cell_size")
    rows = [
        [
            name,
            f"{row['n']}x{row['n']}",
            f"{row['sites']:,}",
            *(length(row[key]) for key in ("largest", "near_mean", "far_mean", "expected_error_near")),
        ]
        for name, cases in content["cases"].items()
        for row in cases
    ]
    away = [cases[-1]["far_mean"] for cases in content["cases"].values()]
    near, far = f"within {NEAR:.0f} Å", f"beyond {FAR:.0f} Å"
    return [
        "## One vacancy in ever larger cells",
        "",
        f"`python -m research.experiments.cell_size`, {content['model']}: displacements in Å. There is no DFT for these sizes. The field near the",
        f"defect settled with size, and the mean displacement {far} fell to {length(max(away))} Å or less in the largest cells.",
        "",
        *table(["case", "cell", "sites", "largest", f"mean {near}", f"mean {far}", f"expected error {near}"], rows),
    ]
