"""Store the matrices of weights in half precision, with their card beside them: the last step before they are bundled.

Run as ``python -m research.recipes.compact WEIGHTS OUT``. What it costs in accuracy is measured by
``python -m research.experiments.half_precision``.
"""

import sys
from pathlib import Path

from ase_definet.checkpoints.format import load_checkpoint, save_checkpoint, write_card


def main() -> None:
    """Write the file and its card."""
    source, out = map(Path, sys.argv[1:])
    loaded = load_checkpoint(source)
    save_checkpoint(out, loaded.model, loaded.card, compact=True, overwrite=True)
    card = write_card(out, overwrite=True)
    print(
        f"wrote {out} ({source.stat().st_size / 1e6:.1f} MB became {out.stat().st_size / 1e6:.1f} MB) and {card.name}"
    )


if __name__ == "__main__":
    main()
