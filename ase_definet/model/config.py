"""Frozen sizes of a network; saved beside its weights."""

from __future__ import annotations

from dataclasses import dataclass


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

    cutoff: float = 7.0
    features: int = 64
    layers: int = 5
    n_radial: int = 24
    radial_min: float = 0.8
    embedding: int = 16
    avg_num_neighbors: float = 50.0
    short_range_cutoff: float = 0.0
    short_range_features: int = 32
    short_range_n_radial: int = 16
    dropout: float = 0.0
    vector_products: bool = True
    vector_norm: bool = False
    pooling: bool = True
    short_range_displaced: bool = True
    host_elements: bool = True
    site_gates: bool = True
    zero_mean: bool = True
    error_head_features: int = 0
    noisy_starts: bool = False
    states: bool = False
    element_descriptors: bool = False


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

    cutoff: float = 6.0
    features: int = 512
    layers: int = 4
    n_radial: int = 128
    max_neighbors: int = 50
    radial_range: float = 30.0
    n_elements: int = 118


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedConfig:
    """One of the networks of an :class:`HostRoutedConfig`.

    Attributes:
        hosts: Elements of each host it is for, as ascending atomic numbers.
        model: Its sizes.
    """

    hosts: tuple[tuple[int, ...], ...]
    model: SiteNetworkConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoutedConfig:
    """Sizes of an :class:`~ase_definet.model.host_routing.HostRoutedModel`.

    Attributes:
        general: Of the network for all other hosts.
        routed: Of the others; none shares a host with another.
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
        hosts = [host for entry in self.routed for host in entry.hosts]
        if len(set(hosts)) < len(hosts) or any(host != tuple(sorted(set(host))) for host in hosts):
            raise ValueError("hosts must be ascending atomic numbers, each of one network")

    @property
    def cutoff(self) -> float:
        """Longest edge, in Å."""
        return self.general.cutoff
