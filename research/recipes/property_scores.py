"""Write anew how well weights for properties do beside always saying the mean: the card changes, no number does.

Run as ``python -m research.recipes.property_scores WEIGHTS PACK VERSION``, for weights that ``weights ensemble`` wrote
before it recorded this.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

from ase_definet.checkpoints.format import load_properties, save_checkpoint, write_card
from ase_definet.data import PackedDataset
from ase_definet.training.property_ensemble import property_scores
from ase_definet.training.property_predictions import labelled_predictions


def main(weights: Path, data: Path, version: str) -> None:
    """Replace the card in a file of weights and beside it."""
    loaded, pack = load_properties(weights), PackedDataset.open(data)
    scores = property_scores(loaded.model, list(labelled_predictions(loaded.model, pack, "val")), pack)
    date = datetime.now(tz=UTC).date().isoformat()
    card = loaded.card.changed(property_scores=scores, version=version, date=date)
    save_checkpoint(weights, loaded.model, card, overwrite=True)
    write_card(weights, overwrite=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
