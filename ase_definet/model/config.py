"""Frozen sizes of a network, saved with its weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from ase_definet.model.settings import check_ranges, check_settings, within

_WIDEST = 100_000
"""Largest number of channels, rows or neighbours, so that a corrupt value cannot exhaust the memory."""


@dataclass(frozen=True, slots=True)
class GeometryNeeds:
    """What a network requires of the arrangement of the sites.

    Attributes:
        cutoff: Longest edge, in Å.
        max_neighbors: Most neighbours of a site, in whole shells; None for no limit.
        lattice: Whether the network runs on the lattice of a perfect supercell; otherwise it needs explicit edges.
    """

    cutoff: float
    max_neighbors: int | None = None
    lattice: bool = False


class NetworkConfig(Protocol):
    """Interface of the configs of all networks."""

    @property
    def cutoff(self) -> float:
        """Longest edge, in Å."""
        ...

    @property
    def geometry(self) -> GeometryNeeds:
        """What the network requires of the arrangement of the sites."""
        ...

    @property
    def noisy_starts(self) -> bool:
        """Whether atoms may start elsewhere than on the host's sites."""
        ...

    @property
    def states(self) -> bool:
        """Whether the network takes the state of a structure into account."""
        ...

    @property
    def error_head_features(self) -> int:
        """Width of the error estimate; 0 for none."""
        ...

    @property
    def dropout(self) -> float:
        """Dropout rate of the channels in training."""
        ...

    @property
    def parts(self) -> Mapping[str, SiteNetworkConfig | DefiNetConfig | SparseNetworkConfig]:
        """Configs of the single networks by the names of their modules; ``""`` is the network itself."""
        ...

    def check(self) -> None:
        """Check that the sizes are valid.

        Raises:
            ValueError: They are not.
        """
        ...

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Read and check a config from plain values.

        Raises:
            ValueError: A setting is unknown or has an invalid value.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteNetworkConfig:
    """Sizes of a :class:`~ase_definet.model.site_network.SiteNetwork`.

    Attributes:
        cutoff: Longest edge, in Å.
        features: Channels of scalars and of vectors.
        layers: Message passes.
        n_radial: Gaussians over the edge length.
        radial_min: Centre of the first Gaussian, in Å.
        embedding: Size of the element, host-element and site-kind embeddings.
        avg_num_neighbors: Typical number of neighbours; scales the messages.
        short_range_cutoff: Cutoff of the messages at predicted distances, in Å, at most ``cutoff``; 0 for none.
        short_range_features: Channels of these messages.
        short_range_n_radial: Gaussians over their distance.
        dropout: Dropout rate of the inputs of updates and of the received channels.
        vector_products: Whether vectors act on each other and on the scalars of their site.
        vector_norm: Whether long vectors are scaled to about one before they act on their site; prevents deep
            networks from diverging at high learning rates.
        pooling: Whether sites receive the mean over the structure.
        short_range_displaced: Whether short-range messages use predicted positions (true) or ideal sites.
        host_elements: Whether a site receives the element of the host.
        site_gates: Whether the occupation of a site gates the messages it sends and receives.
        zero_mean: Whether the mean displacement over atoms is subtracted.
        error_head_features: Width of the error estimate, fitted after training; 0 for none.
        noisy_starts: Whether atoms may start elsewhere than on the host's sites, as required for training with
            ``noisy_start_fraction``.
        states: Whether sites receive the state of their structure: charge, spin multiplicity, functional, excitation.
        element_descriptors: Whether sites receive the periods and valence electrons of their elements.
    """

    cutoff: float = within(7.0, 1.0, 50.0)
    features: int = within(64, 1, _WIDEST)
    layers: int = within(5, 1, 1000)
    n_radial: int = within(24, 1, _WIDEST)
    radial_min: float = within(0.8, 0.0, 50.0)
    embedding: int = within(16, 1, _WIDEST)
    avg_num_neighbors: float = within(50.0, 1e-3, 1e6)
    short_range_cutoff: float = 0.0
    short_range_features: int = within(32, 1, _WIDEST)
    short_range_n_radial: int = within(16, 1, _WIDEST)
    dropout: float = 0.0
    vector_products: bool = True
    vector_norm: bool = False
    pooling: bool = True
    short_range_displaced: bool = True
    host_elements: bool = True
    site_gates: bool = True
    zero_mean: bool = True
    error_head_features: int = within(0, 0, _WIDEST)
    noisy_starts: bool = False
    states: bool = False
    element_descriptors: bool = False

    def check(self) -> None:
        """Check that the sizes are valid.

        Raises:
            ValueError: They are not.
        """
        check_ranges(self)
        if not 0 <= self.short_range_cutoff <= self.cutoff:
            raise ValueError(f"short_range_cutoff must be between 0 and the cutoff, found {self.short_range_cutoff}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, found {self.dropout}")

    @property
    def geometry(self) -> GeometryNeeds:
        """A lattice if there is one: messages are sent between the host's sites."""
        return GeometryNeeds(self.cutoff, lattice=True)

    @property
    def parts(self) -> Mapping[str, SiteNetworkConfig | DefiNetConfig]:
        """The config itself, of a single network."""
        return {"": self}

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Read a config from plain values; see :meth:`NetworkConfig.parse`."""
        check_settings(cls, values)
        config = cls(**values)
        config.check()
        return config


@dataclass(frozen=True, slots=True, kw_only=True)
class DefiNetConfig:
    """Sizes of a :class:`~ase_definet.model.definet.DefiNet`; the defaults are the published ones.

    Attributes:
        cutoff: Longest edge, in Å.
        features: Channels of scalars and of vectors.
        layers: Message passes, each followed by a displacement of the sites.
        n_radial: Gaussians over the edge length.
        max_neighbors: Most neighbours of a site, in whole shells.
        radial_range: Length at which the envelope of the Gaussians ends, in Å.
        n_elements: Rows of the element table, indexed by atomic number; heavier elements are refused.
    """

    cutoff: float = within(6.0, 1.0, 50.0)
    features: int = within(512, 1, _WIDEST)
    layers: int = within(4, 1, 1000)
    n_radial: int = within(128, 1, _WIDEST)
    max_neighbors: int = within(50, 1, _WIDEST)
    radial_range: float = within(30.0, 1e-3, 1e6)
    n_elements: int = within(118, 1, _WIDEST)

    def check(self) -> None:
        """Check that the sizes are valid; see :meth:`SiteNetworkConfig.check`."""
        check_ranges(self)

    @property
    def geometry(self) -> GeometryNeeds:
        """Explicit edges, because sites move between the layers."""
        return GeometryNeeds(self.cutoff, max_neighbors=self.max_neighbors)

    @property
    def noisy_starts(self) -> bool:
        """No: atoms start on the host's sites."""
        return False

    @property
    def states(self) -> bool:
        """No: its input is atoms and sites only."""
        return False

    @property
    def error_head_features(self) -> int:
        """Zero: it has no error estimate."""
        return 0

    @property
    def dropout(self) -> float:
        """Zero: it has no dropout."""
        return 0.0

    @property
    def parts(self) -> Mapping[str, SiteNetworkConfig | DefiNetConfig]:
        """The config itself, of a single network."""
        return {"": self}

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Read a config from plain values; see :meth:`NetworkConfig.parse`."""
        check_settings(cls, values)
        config = cls(**values)
        config.check()
        return config


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """The structures on a host that a network serves, if another network serves the rest.

    Attributes:
        elements: Atomic numbers allowed on the sites; empty for any.
        states: Allowed codes of each property of a state (:mod:`ase_definet.structures.state`), besides unknown;
            empty for any.
        layered: Whether the host must be a layer (true) or a crystal (false); None for either.
    """

    elements: tuple[int, ...] = ()
    states: tuple[tuple[int, ...], ...] = ()
    layered: bool | None = None

    def holds(self, numbers: Collection[int], state: Sequence[int] | None, *, layered: bool) -> bool:
        """Whether a structure is covered.

        Args:
            numbers: Atomic numbers of its atoms.
            state: Codes of its state; None if unknown.
            layered: Whether its host is a layer.
        """
        if self.layered is not None and layered != self.layered:
            return False
        if self.elements and not set(numbers) <= set(self.elements):
            return False
        known = zip(state or (), self.states, strict=False)
        return all(not code or code in seen for code, seen in known)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedConfig:
    """One of the networks of an :class:`HostRoutedConfig`.

    Attributes:
        hosts: Elements of each of its hosts, as ascending atomic numbers.
        model: Its sizes.
        coverage: Which structures on these hosts it serves, if another network serves the rest; None for all.
    """

    hosts: tuple[tuple[int, ...], ...]
    model: SiteNetworkConfig
    coverage: Coverage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoutedConfig:
    """Sizes of an :class:`~ase_definet.model.host_routing.HostRoutedModel`.

    Attributes:
        general: Sizes of the network for all other hosts.
        routed: Those of the other networks. A host may have several: the first that covers a structure serves
            it, and the last one has no ``coverage``.
    """

    general: SiteNetworkConfig
    routed: tuple[RoutedConfig, ...]

    def __post_init__(self) -> None:
        """Check that the networks are interchangeable.

        Raises:
            ValueError: Their cutoffs or outputs differ, or they share a host.
        """
        models = [self.general, *(entry.model for entry in self.routed)]
        if len({(model.cutoff, bool(model.error_head_features)) for model in models}) > 1:
            raise ValueError("all networks need the same cutoff, and all or none an estimate of the error")
        hosts = [host for entry in self.routed if entry.coverage is None for host in entry.hosts]
        covered = {host for entry in self.routed if entry.coverage is not None for host in entry.hosts}
        if len(set(hosts)) < len(hosts) or any(host != tuple(sorted(set(host))) for host in (*hosts, *covered)):
            raise ValueError("hosts must be ascending atomic numbers, each of one network")
        if not covered <= set(hosts):
            raise ValueError("a host of a network that serves some structures only needs another one for the rest")

    def check(self) -> None:
        """Check that the sizes are valid; see :meth:`SiteNetworkConfig.check`."""
        for part in self.parts.values():
            part.check()

    @property
    def cutoff(self) -> float:
        """Longest edge, in Å."""
        return self.general.cutoff

    @property
    def geometry(self) -> GeometryNeeds:
        """What all of its networks require."""
        return self.general.geometry

    @property
    def noisy_starts(self) -> bool:
        """Whether atoms may start elsewhere than on the host's sites, on any host."""
        return all(part.noisy_starts for part in self.parts.values())

    @property
    def states(self) -> bool:
        """Whether any of its networks takes the state of a structure into account."""
        return any(part.states for part in self.parts.values())

    @property
    def error_head_features(self) -> int:
        """Width of the error estimate; 0 for none."""
        return self.general.error_head_features

    @property
    def dropout(self) -> float:
        """Dropout rate of the channels in training."""
        return self.general.dropout

    @property
    def parts(self) -> Mapping[str, SiteNetworkConfig | DefiNetConfig]:
        """The configs of the general network and of the others, by their modules."""
        return {"general": self.general} | {f"routed.{k}": entry.model for k, entry in enumerate(self.routed)}

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Read a config from plain values; see :meth:`NetworkConfig.parse`."""
        try:
            hosts = [tuple(tuple(int(z) for z in host) for host in one["hosts"]) for one in values["routed"]]
            coverages = [_coverage(one.get("coverage")) for one in values["routed"]]
            sizes = [values["general"], *(one["model"] for one in values["routed"])]
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError("the config does not name general and routed") from error
        if set(values) - {"general", "routed"} or not all(isinstance(one, Mapping) for one in sizes):
            raise ValueError("the config must hold settings under general and routed only")
        general, *others = (SiteNetworkConfig.parse(one) for one in sizes)
        routed = (
            RoutedConfig(hosts=own, model=model, coverage=coverage)
            for own, model, coverage in zip(hosts, others, coverages, strict=True)
        )
        return cls(general=general, routed=tuple(routed))


def _coverage(values: Mapping[str, Any] | None) -> Coverage | None:
    """Read a coverage from plain JSON values.

    Raises:
        LookupError, TypeError, ValueError: They are invalid.
    """
    if values is None:
        return None
    layered = values["layered"]
    if layered is not None and not isinstance(layered, bool):
        raise TypeError("layered must be true, false or null")
    return Coverage(
        elements=tuple(int(z) for z in values["elements"]),
        states=tuple(tuple(int(code) for code in codes) for codes in values["states"]),
        layered=layered,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseNetworkConfig:
    """Sizes of a :class:`~ase_definet.model.sparse_network.SparseNetwork`, and what it knows.

    Attributes:
        targets: Names of the properties.
        additive: Those that are sums over defects and pairs, as energies are; the others are pooled.
        hosts: Hosts: the atomic numbers of the primitive cell, ascending.
        kinds: Kinds of defects: atomic number on the site (0 for a vacancy), that of the host, index of the host.
        cutoff: Longest pair, in Å.
        n_radial: Gaussians over the distance of a pair.
        radial_min: Centre of the first, in Å.
        features: Channels of a defect.
        pair_features: Channels of a pair.
        layers: Message passes.
        heads: Attention heads of the pooled properties.
        dropout: Dropout rate of updates and read-outs.
        pairs: Whether defects see each other; without, properties follow from the counts of defects.
        long_range: Whether any two defects of a cell act on each other, those beyond the cutoff all in the same way:
            they share their electrons.
    """

    targets: tuple[str, ...] = ()
    additive: tuple[str, ...] = ()
    hosts: tuple[tuple[int, ...], ...] = ()
    kinds: tuple[tuple[int, int, int], ...] = ()
    cutoff: float = within(13.0, 1.0, 50.0)
    n_radial: int = within(35, 2, _WIDEST)
    radial_min: float = within(1.2, 0.0, 50.0)
    features: int = within(64, 1, _WIDEST)
    pair_features: int = within(32, 1, _WIDEST)
    layers: int = within(3, 1, 1000)
    heads: int = within(8, 1, 1000)
    dropout: float = 0.1
    pairs: bool = True
    long_range: bool = False

    def check(self) -> None:
        """Check that the sizes are valid; see :meth:`SiteNetworkConfig.check`."""
        check_ranges(self)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, found {self.dropout}")
        if not set(self.additive) <= set(self.targets):
            raise ValueError(f"additive properties must be among the targets, found {self.additive}")
        if any(not 0 <= host < len(self.hosts) for _, _, host in self.kinds):
            raise ValueError("a kind of defect belongs to a host that is not listed")

    @property
    def geometry(self) -> GeometryNeeds:
        """Pairs of defects up to the cutoff."""
        return GeometryNeeds(self.cutoff)

    @property
    def noisy_starts(self) -> bool:
        """No: it knows no positions but the host's sites."""
        return False

    @property
    def states(self) -> bool:
        """No: it knows neutral defects in their ground state."""
        return False

    @property
    def error_head_features(self) -> int:
        """Zero: errors are estimated from an ensemble."""
        return 0

    @property
    def parts(self) -> Mapping[str, SparseNetworkConfig]:
        """The config itself, of a single network."""
        return {"": self}

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Read a config from plain values; see :meth:`NetworkConfig.parse`."""
        check_settings(cls, values)
        config = cls(**dict(values) | _tuples_of(values))
        config.check()
        return config


def _tuples_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lists of a sparse config as tuples.

    Raises:
        ValueError: They are not lists of names or of numbers.
    """
    out: dict[str, Any] = {}
    for name in {"targets", "additive"} & set(values):
        found = values[name]
        if not isinstance(found, (list, tuple)) or not all(isinstance(one, str) for one in found):
            raise ValueError(f"{name} must be a list of names, found {found!r}")
        out[name] = tuple(found)
    for name in {"hosts", "kinds"} & set(values):
        try:
            out[name] = tuple(tuple(int(z) for z in one) for one in values[name])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be a list of lists of numbers, found {values[name]!r:.60}") from error
    if any(len(kind) != 3 for kind in out.get("kinds", ())):  # noqa: PLR2004 - as documented
        raise ValueError("each kind of defect must be three numbers: element, element of the host, index of the host")
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertyEnsembleConfig:
    """Sizes of a :class:`~ase_definet.model.sparse_network.PropertyEnsemble`.

    Attributes:
        members: The networks; each may know other properties.
    """

    members: tuple[SparseNetworkConfig, ...]

    def check(self) -> None:
        """Check that the networks can be one ensemble; see :meth:`SiteNetworkConfig.check`."""
        if not self.members:
            raise ValueError("an ensemble needs at least one network")
        first = self.members[0]
        for member in self.members:
            member.check()
            same = ("hosts", "kinds", "cutoff", "n_radial", "radial_min")
            if any(getattr(member, name) != getattr(first, name) for name in same):
                raise ValueError("the networks of an ensemble must know the same hosts, defects and pairs")

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the properties of all networks."""
        return tuple(dict.fromkeys(name for member in self.members for name in member.targets))

    @property
    def additive(self) -> tuple[str, ...]:
        """Those that are sums over defects and pairs."""
        return tuple(dict.fromkeys(name for member in self.members for name in member.additive))

    @property
    def first(self) -> SparseNetworkConfig:
        """The config of the first network."""
        return self.members[0]

    @property
    def cutoff(self) -> float:
        """Longest pair, in Å."""
        return self.first.cutoff

    @property
    def geometry(self) -> GeometryNeeds:
        """Pairs of defects up to the cutoff."""
        return self.first.geometry

    @property
    def noisy_starts(self) -> bool:
        """No: it knows no positions but the host's sites."""
        return False

    @property
    def states(self) -> bool:
        """No: it knows neutral defects in their ground state."""
        return False

    @property
    def error_head_features(self) -> int:
        """Zero: errors are estimated from the spread of the ensemble."""
        return 0

    @property
    def dropout(self) -> float:
        """Dropout rate of the first network."""
        return self.first.dropout

    @property
    def parts(self) -> Mapping[str, SparseNetworkConfig]:
        """The configs of the networks, by their modules."""
        return {f"members.{k}": member for k, member in enumerate(self.members)}

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Read a config from plain values; see :meth:`NetworkConfig.parse`."""
        members = values.get("members")
        if set(values) != {"members"} or not isinstance(members, (list, tuple)):
            raise ValueError("the config of an ensemble must list its members, and nothing else")
        config = cls(members=tuple(SparseNetworkConfig.parse(one) for one in members))
        config.check()
        return config
