"""Sparsity patterns: the name, its C++ type, and the numpy mask that proves the header right.

A pattern's slug is a word with its parameters, such as ``causal`` or ``longformer-w256-g64``. The
C++ side of each lives in ``templates/patterns/``; the tests compare the two.
"""

from fagen.patterns.base import UNBOUNDED, IntervalPattern, Pattern, StaticPattern, Tiles
from fagen.patterns.blocks import BigBird, Butterfly
from fagen.patterns.data import BlockLists, DataPattern, Documents
from fagen.patterns.mix import Mix
from fagen.patterns.parts import Dilated, Fixed, Longformer, Strided
from fagen.patterns.runs import CAUSAL, CAUSAL_TOP_LEFT, DENSE, Band, BlockDiagonal, PrefixLM
from fagen.patterns.table import PATTERNS, PatternRow, parse_pattern

__all__ = [
    "CAUSAL", "CAUSAL_TOP_LEFT", "DENSE", "PATTERNS", "UNBOUNDED", "Band", "BigBird",
    "BlockDiagonal", "BlockLists", "Butterfly", "DataPattern", "Dilated", "Documents", "Fixed",
    "IntervalPattern", "Longformer", "Mix", "Pattern", "PatternRow", "PrefixLM", "StaticPattern",
    "Strided", "Tiles", "parse_pattern",
]
