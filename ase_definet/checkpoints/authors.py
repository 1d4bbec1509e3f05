"""Import of weights saved by the authors' code: pickled dictionaries of tensors, their code never run."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ase_definet.checkpoints.card import ModelCard
from ase_definet.checkpoints.format import LoadedModel, existing_file, file_sha256, model_of, some_of
from ase_definet.errors import CheckpointError
from ase_definet.model.config import DefiNetConfig

if TYPE_CHECKING:
    from ase_definet.model.protocol import DisplacementModel

_WRAPPERS = ("state_dict", "model_state_dict", "model", "ema", "ema_state_dict")
_ANCHOR = "atom_emb.embeddings.weight"


def import_authors_checkpoint(
    source: str | os.PathLike[str], *, cutoff: float = 6.0, max_neighbors: int = 50, radial_range: float = 30.0
) -> LoadedModel:
    """Read weights saved by the authors' code: a pickled dictionary of tensors, its code never run.

    Sizes are read from the shapes. What no shape tells is taken from the arguments, whose defaults are those
    of the published training runs.

    Args:
        source: The file; the dictionary may be wrapped in another, and its names may share a prefix.
        cutoff: Longest edge of its training, in Å.
        max_neighbors: Most neighbours of a site in its training.
        radial_range: Length at which its radial envelope ended, in Å.

    Returns:
        The network; pass it to :func:`save_checkpoint` to keep it.

    Raises:
        CheckpointError: The file is missing, holds more than tensors, or does not fit the published network.
    """
    path = existing_file(source)
    try:
        with warnings.catch_warnings():  # torch warns of pickle protocols it then reads or refuses
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a plain dictionary of tensors: it is damaged or carries pickled code, which is never run"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a PyTorch file, or is damaged: expected a file that torch.save wrote"
        ) from error
    tensors = _named_tensors(path, content)
    config = _authors_config(path, tensors, cutoff, max_neighbors, radial_range)
    card = ModelCard(
        origin="imported from a file of the authors' code (Yang et al., npj Comput. Mater. 11, 229, 2025)",
        source=path.name,
    )
    return LoadedModel(
        model=cast("DisplacementModel", model_of(path, config, tensors)),
        config=config,
        architecture="definet",
        card=card,
        sha256=file_sha256(path),
    )


def _named_tensors(path: Path, content: object) -> dict[str, Tensor]:
    """Unwrap a dictionary of tensors and strip the prefix its names share."""
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a dictionary of tensors, found {type(content).__name__}")
    odd = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd:
        raise CheckpointError(f"{path} must hold a dictionary of tensors, found other things under {some_of(odd)}")
    anchors = (name for name in content if name.endswith(_ANCHOR))
    prefix = min(anchors, key=len, default=_ANCHOR).removesuffix(_ANCHOR)
    return {name.removeprefix(prefix): value for name, value in content.items()}


def _authors_config(
    path: Path, tensors: Mapping[str, Tensor], cutoff: float, max_neighbors: int, radial_range: float
) -> DefiNetConfig:
    """Read the sizes of a published network from the shapes of its tensors."""
    edge = "message_passing_layers.0.edge_proj.weight"
    for name in (_ANCHOR, edge):
        if name not in tensors:
            raise CheckpointError(f"{path} is not of the published network: missing {name}")
        if tensors[name].ndim != 2:  # noqa: PLR2004
            raise CheckpointError(f"{path} is not of the published network: {name} must be a matrix")
    layers = {found[1] for name in tensors if (found := re.match(r"message_passing_layers\.(\d+)\.", name))}
    n_elements, features = tensors[_ANCHOR].shape
    return DefiNetConfig(
        cutoff=cutoff,
        features=features,
        layers=len(layers),
        n_radial=tensors[edge].shape[1],
        max_neighbors=max_neighbors,
        radial_range=radial_range,
        n_elements=n_elements,
    )
