"""Pairs of unrelaxed and relaxed structures: reading, checking, packing."""

from ase_definet.data.examine import MatchedPair, Problem, examine
from ase_definet.data.packed import FORMAT, PackedDataset, PairGroup, is_pack, pack_pairs, pack_rows, save_groups
from ase_definet.data.pairs import SPLITS, PairSource, find_pairs

__all__ = [
    "FORMAT",
    "SPLITS",
    "MatchedPair",
    "PackedDataset",
    "PairGroup",
    "PairSource",
    "Problem",
    "examine",
    "find_pairs",
    "is_pack",
    "pack_pairs",
    "pack_rows",
    "save_groups",
]
