"""Token-sparse backward: what it is (gate.py), how it is made fast (backward.py), and the proof that both agree (proof.py)."""

from .backward import KeptSelection, SparseBackward
from .gate import gate, gated

__all__ = ["KeptSelection", "SparseBackward", "gate", "gated"]
