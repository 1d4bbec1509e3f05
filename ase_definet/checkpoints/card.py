"""Model cards: what is known about weights, validated and read in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

CARD_VERSION = 1
"""Version of the cards that this package reads and writes; a card that names none is of version 1."""

_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    """Part of a card. Keys that are not listed are kept as they are, never read, and written again."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, protected_namespaces=())

    def plain(self) -> dict[str, Any]:
        """Return the entries that were given as plain JSON values, those under unknown keys too."""
        return self.model_dump(exclude_unset=True)


class CrystalRecord(_Record):
    """The primitive cell of a host.

    Attributes:
        numbers: Atomic numbers.
        positions: Of its sites, in Å.
        cell: Its vectors as rows, in Å.
        layered: Whether it is a layer, normal to the third vector.
    """

    numbers: list[int]
    positions: list[list[float]]
    cell: Annotated[list[list[float]], Field(min_length=3, max_length=3)]
    layered: bool


class HostRecord(_Record):
    """What was seen of one host in training.

    Attributes:
        defects: Names of the defects, as in ``v_Mo``.
        density: Least and largest share of sites that are defects.
        charges: Net charges of the cells, in e.
        spin_multiplicities: Spin multiplicities, those that are known.
        functionals: Exchange-correlation functionals.
        excited: Whether excited states were among them.
        sites: Sites of a supercell.
        training_pairs: Pairs of unrelaxed and relaxed structures.
        side_by_side: Kinds of defects that were neighbours, as in ``substitution+vacancy``; None if not recorded.
        crystal: The host itself, unless it is in the library under this name.
    """

    defects: list[str]
    density: Annotated[list[_Share], Field(min_length=2, max_length=2)] = [0.0, 1.0]
    charges: list[int] = [0]
    spin_multiplicities: list[int] = []
    functionals: list[str] = ["PBE"]
    excited: bool = False
    sites: _Count | None = None
    training_pairs: _Count | None = None
    side_by_side: list[str] | None = None
    crystal: CrystalRecord | None = None

    def joined(self, other: HostRecord, *, disjoint: bool = False) -> HostRecord:
        """Return what was seen of either of two sets of pairs; the sites are those of this one.

        Args:
            other: The record of the other set.
            disjoint: Whether no pair is in both. Else their number is that of the larger set, at least.
        """
        counts = [n for n in (self.training_pairs, other.training_pairs) if n is not None]
        return self.model_copy(
            update={
                "defects": sorted({*self.defects, *other.defects}),
                "density": [min(self.density[0], other.density[0]), max(self.density[1], other.density[1])],
                "charges": sorted({*self.charges, *other.charges}),
                "spin_multiplicities": sorted({*self.spin_multiplicities, *other.spin_multiplicities}),
                "functionals": sorted({*self.functionals, *other.functionals}),
                "excited": self.excited or other.excited,
                "training_pairs": sum(counts) if disjoint else max(counts, default=None),
                "side_by_side": None
                if self.side_by_side is None or other.side_by_side is None
                else sorted({*self.side_by_side, *other.side_by_side}),
            }
        )


class TrainingRecord(_Record):
    """What weights were trained on, and how.

    Attributes:
        elements: Symbols of the elements in the training data.
        hosts: What was seen of each host, by its name in the library.
        steps: Length of the run.
        batch_size: Structures a step.
        data_sha256: Digest of the packed data set.
        config: The config of the run.
        labelled_by_networks: Pairs by host that other networks have labelled; they are no DFT data.
        initial_weights: Which weights the run began with.
    """

    elements: list[str] = []
    hosts: dict[str, HostRecord] = {}
    steps: _Count | None = None
    batch_size: _Count | None = None
    data_sha256: str | None = None
    config: dict[str, Any] | None = None
    labelled_by_networks: dict[str, _Count] | None = None
    initial_weights: dict[str, Any] | None = None


class ValidationRow(_Record):
    """Coordinate MAE on one subset of the validation data, in Å.

    Attributes:
        mae: Over all atoms.
        a3: Within 3 Å of a defect.
        ideal_sites: Of the prediction that moves nothing, over all atoms.
        ideal_sites_a3: Of the prediction that moves nothing, within 3 Å of a defect.
    """

    mae: float | None = None
    a3: float | None = None
    ideal_sites: float | None = None
    ideal_sites_a3: float | None = None


class PropertyScoreRecord(_Record):
    """How well weights predict one property on one subset of the validation data, beside always saying the mean.

    Values and errors are in the unit of the property; those of sums over defects are per defect site.

    Attributes:
        host: Name of the host.
        n: Structures with a label.
        mae: Mean absolute error.
        mean_mae: That of always saying the mean of the training data of the subset.
        r2: Share of the variance around that mean that is predicted: zero is as good as always saying it.
        rank_correlation: Spearman's, of values and labels; None where either is always the same.
    """

    host: str
    n: _Count
    mae: Annotated[float, Field(ge=0)]
    mean_mae: Annotated[float, Field(ge=0)]
    r2: Annotated[float, Field(le=1)]
    rank_correlation: Annotated[float, Field(ge=-1, le=1)] | None = None


class NearRecord(_Record):
    """What was measured of structures that lie outside the training data in one respect, and in no other.

    Attributes:
        share: The network's error as a share of that of the ideal sites, means over all atoms.
        error_factor: True mean error over the mean of what was expected; None where that was not measured.
        structures: How many structures.
        defects: The only defects that this is about; empty for all.
        hosts: The only hosts that this is about; empty for all.
        source: Where the figures come from.
    """

    share: Annotated[float, Field(ge=0)]
    error_factor: Annotated[float, Field(gt=0)] | None = None
    structures: _Count | None = None
    defects: list[str] = []
    hosts: list[str] = []
    source: str | None = None


class ErrorModelRecord(_Record):
    """How long errors are expected to be, learned from structures that were left out of training.

    The logarithm of the expected error of an atom, in Å, is a sum over features of the atom and its structure
    (:mod:`ase_definet.relaxation.expected_error`) and over the respects in which the structure lies outside.

    Attributes:
        features: Weight of each feature, by name.
        respects: What each respect adds, by its key (``charge:1``, ``host:alike``).
        inside: Names of the hosts where the sum replaces the network's own estimate inside the training data too.
        structures: How many structures it was learned from.
        source: Where they come from.
    """

    features: dict[str, float]
    respects: dict[str, float] = {}
    inside: list[str] = []
    structures: _Count | None = None
    source: str | None = None


class RoutedRecord(_Record):
    """One of several networks in a file, as its own card described it.

    Attributes:
        hosts: Names of the hosts that it serves.
        beside: Whether it serves only what it was trained on there, and another network the rest.
        name: Name of its weights.
        version: Their version.
        parameters: Number of its weights.
        training: What it was trained on.
        error_model: How long its errors are expected to be, where that is not as the card says of all networks.
    """

    hosts: list[str]
    beside: bool = False
    name: str | None = None
    version: str | None = None
    parameters: _Count | None = None
    training: TrainingRecord | None = None
    error_model: ErrorModelRecord | None = None


class ModelCard(_Record):
    """What a user should know about weights. Every entry may be missing; distances are in Å.

    A card is versioned and validated: entries that are listed here must be of the types given, in files too. Keys
    that are not listed are kept, because a card may say more than any program reads; nothing here depends on them.

    Attributes:
        card_version: Version of this format.
        name: Name of the weights.
        version: Their version.
        date: ISO date on which they were made.
        architecture: The kind of network, in words.
        parameters: Number of weights.
        attribution: Whom to cite for the data.
        license: Of the weights.
        training: What they were trained on, all networks together.
        general: What the network for all other hosts was trained on, where there are several; elements and hosts.
        validation: How well they do, by subset.
        units: What the numbers under ``validation`` are.
        limits: Where they end.
        expected_error: How reliable the estimate of their error is, by subset.
        property_scores: How well weights for properties do beside always saying the mean, by property and subset.
        near: How well they do just outside of the training data, by respect: ``charge:1``, ``functional``, ``spin``,
            ``defects``, ``host:WS2``, ``host:alike``.
        error_model: How long errors are expected to be where the network's own estimate does not hold.
        routed: Those for hosts of their own, where there are several networks.
        source: File that they were imported from.
        origin: Where that file came from.
    """

    card_version: int = CARD_VERSION
    name: str | None = None
    version: str | None = None
    date: str | None = None
    architecture: str | None = None
    parameters: _Count | None = None
    attribution: str | None = None
    license: str | None = None
    training: TrainingRecord | None = None
    general: TrainingRecord | None = None
    validation: dict[str, ValidationRow] = {}
    units: str | None = None
    limits: str | None = None
    expected_error: dict[str, dict[str, Any]] | None = None
    property_scores: dict[str, dict[str, PropertyScoreRecord]] = {}
    near: dict[str, NearRecord] = {}
    error_model: ErrorModelRecord | None = None
    routed: list[RoutedRecord] = []
    source: str | None = None
    origin: str | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> ModelCard:
        """Read a card from plain JSON values.

        Raises:
            ValueError: An entry is of the wrong type, or the card is of a newer version; one line that says which.
        """
        version = values.get("card_version", CARD_VERSION)
        if isinstance(version, int) and version > CARD_VERSION:
            raise ValueError(f"the card has version {version}, expected at most {CARD_VERSION}; upgrade ase-definet")
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"the card's {place}: {first['msg']}, found {first['input']!r:.60}") from error

    def changed(self, **entries: Any) -> ModelCard:
        """Return the card with some entries replaced, validated anew."""
        return ModelCard.read(self.plain() | entries)
