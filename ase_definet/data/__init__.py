"""Pairs of unrelaxed and relaxed structures: reading, checking, packing."""

from ase_definet.data.examine import Problem, Row, examine
from ase_definet.data.packed import FORMAT, Group, Pack, is_pack, pack_pairs, pack_rows, save_groups
from ase_definet.data.pairs import SPLITS, Reference, find_pairs

__all__ = [
    "FORMAT",
    "SPLITS",
    "Group",
    "Pack",
    "Problem",
    "Reference",
    "Row",
    "examine",
    "find_pairs",
    "is_pack",
    "pack_pairs",
    "pack_rows",
    "save_groups",
]
