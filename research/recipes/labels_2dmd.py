"""Write the labels of 2DMD that are trained on, from the table 2dmd_labels.csv.xz.

Run as ``python -m research.recipes.labels_2dmd TABLE OUT``. Two MoS2 rows are left out, whose file holds Mo58 where its
name says Mo56, and so are the moments of MoS2 and WSe2, which were computed without spin.
"""

import csv
import lzma
import sys
from pathlib import Path

DOUBTFUL = ("3b9d2bad", "fcfeec86")
SPINLESS = ("MoS2", "WSe2")
COLUMNS = ("id", "formation_energy_eV", "gap_min_eV", "total_mag_muB")


def main(table: Path, out: Path) -> None:
    """Write the chosen columns of the good rows."""
    with lzma.open(table, "rt", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with out.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            if any(part in row["id"] for part in DOUBTFUL):
                continue
            without = {"total_mag_muB": ""} if row["subset"].endswith(SPINLESS) else {}
            writer.writerow(row | without)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
