"""Retinal vessel segmentation with a token-pruned vision transformer (Reg4Pru)."""

__version__ = "0.1.0"
