"""Train from a TOML file, or export a run's weights.

``python -m ase_definet.train CONFIG.toml`` trains, resuming from the last checkpoint;
``python -m ase_definet.train CONFIG.toml --export DIR NAME VERSION`` writes what it has learned.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from ase_definet.model.config import SiteNetworkConfig
from ase_definet.train.card import export_weights
from ase_definet.train.loop import Run, TrainConfig, train

if __name__ == "__main__":
    options = tomllib.loads(Path(sys.argv[1]).read_text())
    config = TrainConfig(model=SiteNetworkConfig(**options.pop("model", {})), **options)
    if "--export" in sys.argv:
        directory, name, version = sys.argv[sys.argv.index("--export") + 1 :]
        run = Run(config)
        run.resume()
        export_weights(run, Path(directory), name, version)
    else:
        train(config)
