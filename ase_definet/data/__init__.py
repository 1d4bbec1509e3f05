"""Pairs of unrelaxed and relaxed structures: reading, checking, packing."""

from ase_definet.data.examine import MatchedPair, Problem, examine
from ase_definet.data.labels import LabelTable, read_labels, with_labels
from ase_definet.data.packed import (
    FORMAT,
    PackedDataset,
    PairGroup,
    is_pack,
    label_pack,
    pack_pairs,
    pack_rows,
    save_groups,
)
from ase_definet.data.pairs import SPLITS, PairSource, find_pairs

__all__ = [
    "FORMAT",
    "SPLITS",
    "LabelTable",
    "MatchedPair",
    "PackedDataset",
    "PairGroup",
    "PairSource",
    "Problem",
    "examine",
    "find_pairs",
    "is_pack",
    "label_pack",
    "pack_pairs",
    "pack_rows",
    "read_labels",
    "save_groups",
    "with_labels",
]
