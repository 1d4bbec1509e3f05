"""Train from a TOML file: ``python -m ase_definet.train CONFIG.toml``."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from ase_definet.model.config import SiteNetworkConfig
from ase_definet.train.loop import TrainConfig, train

if __name__ == "__main__":
    options = tomllib.loads(Path(sys.argv[1]).read_text())
    model = SiteNetworkConfig(**options.pop("model", {}))
    train(TrainConfig(model=model, **options))
