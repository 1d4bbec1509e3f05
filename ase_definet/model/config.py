"""Frozen sizes of a network; saved beside its weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from ase_definet.model.settings import check_ranges, check_settings, within

_WIDEST = 100_000
"""Most channels, rows or neighbours: a damaged number must not fill the memory."""


@dataclass(frozen=True, slots=True)
class GeometryNeeds:
    """What a network wants to know of the arrangement of the sites.

    Attributes:
        cutoff: Longest edge, in Å.
        max_neighbors: Most neighbours of a site, in whole shells; None for no limit.
        lattice: Whether the network runs on the lattice of a perfect supercell; otherwise it needs explicit edges.
    """

    cutoff: float
    max_neighbors: int | None = None
    lattice: bool = False


class NetworkConfig(Protocol):
    """What every config of a network says of it."""

    @property
    def cutoff(self) -> float:
        """Longest edge, in Å."""
        ...

    @property
    def geometry(self) -> GeometryNeeds:
        """What the network wants to know of the arrangement of the sites."""
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
        """Width of the estimate of each atom's error; 0 for none."""
        ...

    @property
    def dropout(self) -> float:
        """Share of the channels that training leaves out."""
        ...

    @property
    def parts(self) -> Mapping[str, SiteNetworkConfig | DefiNetConfig]:
        """The config of each single network in it, by the module that it is of; ``""`` is the network itself."""
        ...

    def check(self) -> None:
        """Check that there can be a network of these sizes.

        Raises:
            ValueError: There cannot.
        """
        ...

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Read a config from plain values, checked.

        Raises:
            ValueError: A setting is unknown, or its value is not possible.
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
        short_range_cutoff: Longest pair of the messages at guessed distances, in Å, at most ``cutoff``; 0 for none of
            those.
        short_range_features: Their channels.
        short_range_n_radial: Their Gaussians over the distance.
        dropout: Share of the inputs of updates, and of the channels heard, that training leaves out.
        vector_products: Whether vectors act on each other and on the scalars of their site.
        vector_norm: Whether long vectors are scaled to about one before they act on their site; keeps deep networks
            from blowing up at high rates.
        pooling: Whether sites hear the mean over the structure.
        short_range_displaced: Whether close neighbours meet where they have been guessed to be, or on ideal sites.
        host_elements: Whether a site knows what the host has there.
        site_gates: Whether what is on a site gates the messages it sends and hears.
        zero_mean: Whether the mean displacement over real atoms is taken off.
        error_head_features: Width of the estimate of each atom's error, fitted after training; 0 for none.
        noisy_starts: Whether atoms may start elsewhere than on the host's sites, as training with
            ``noisy_start_fraction`` wants it.
        states: Whether sites know the state of their structure: charge, spin multiplicity, functional, excitation.
        element_descriptors: Whether sites know the periods and valence electrons of their elements.
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
        """Check that there can be a network of these sizes.

        Raises:
            ValueError: There cannot.
        """
        check_ranges(self)
        if not 0 <= self.short_range_cutoff <= self.cutoff:
            raise ValueError(f"short_range_cutoff must be between 0 and the cutoff, found {self.short_range_cutoff}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, found {self.dropout}")

    @property
    def geometry(self) -> GeometryNeeds:
        """A lattice where there is one: the messages stay on the host's sites."""
        return GeometryNeeds(self.cutoff, lattice=True)

    @property
    def parts(self) -> Mapping[str, SiteNetworkConfig | DefiNetConfig]:
        """Itself: it is a single network."""
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
        layers: Message passes, each followed by a move of the sites.
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
        """Check that there can be a network of these sizes; see :meth:`SiteNetworkConfig.check`."""
        check_ranges(self)

    @property
    def geometry(self) -> GeometryNeeds:
        """Explicit edges, because sites move between the layers."""
        return GeometryNeeds(self.cutoff, max_neighbors=self.max_neighbors)

    @property
    def noisy_starts(self) -> bool:
        """No: atoms begin on the host's sites."""
        return False

    @property
    def states(self) -> bool:
        """No: it knows atoms and sites only."""
        return False

    @property
    def error_head_features(self) -> int:
        """None: it has no estimate of its error."""
        return 0

    @property
    def dropout(self) -> float:
        """None."""
        return 0.0

    @property
    def parts(self) -> Mapping[str, SiteNetworkConfig | DefiNetConfig]:
        """Itself: it is a single network."""
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
    """The structures on a host that a network was trained on, where another network serves the rest.

    Attributes:
        elements: Atomic numbers of what may be on the sites; empty for anything.
        states: Codes of each property of a state (:mod:`ase_definet.structures.state`) that may be, besides unknown
            ones; empty for anything.
        layered: Whether the host must be a layer (true) or a crystal (false); None for either.
    """

    elements: tuple[int, ...] = ()
    states: tuple[tuple[int, ...], ...] = ()
    layered: bool | None = None

    def holds(self, numbers: Collection[int], state: Sequence[int] | None, *, layered: bool) -> bool:
        """Whether a structure is covered.

        Args:
            numbers: Atomic numbers of its atoms.
            state: Codes of its state; None where nothing is known of it.
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
        hosts: Elements of each host it is for, as ascending atomic numbers.
        model: Its sizes.
        coverage: Which structures on these hosts it serves, where another network serves the rest; None for all.
    """

    hosts: tuple[tuple[int, ...], ...]
    model: SiteNetworkConfig
    coverage: Coverage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoutedConfig:
    """Sizes of an :class:`~ase_definet.model.host_routing.HostRoutedModel`.

    Attributes:
        general: Of the network for all other hosts.
        routed: Of the others. A host may have several: the first that covers a structure serves it, and the last one
            has no ``coverage``.
    """

    general: SiteNetworkConfig
    routed: tuple[RoutedConfig, ...]

    def __post_init__(self) -> None:
        """Refuse networks that could not take each other's place.

        Raises:
            ValueError: They differ in what a caller sees of them, or share a host.
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
        """Check that there can be networks of these sizes; see :meth:`SiteNetworkConfig.check`."""
        for part in self.parts.values():
            part.check()

    @property
    def cutoff(self) -> float:
        """Longest edge, in Å."""
        return self.general.cutoff

    @property
    def geometry(self) -> GeometryNeeds:
        """What all of its networks want."""
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
        """Width of the estimate of each atom's error; 0 for none."""
        return self.general.error_head_features

    @property
    def dropout(self) -> float:
        """Share of the channels that training leaves out."""
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
    """Read a coverage from plain values, as JSON holds them.

    Raises:
        LookupError, TypeError, ValueError: They are none.
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
