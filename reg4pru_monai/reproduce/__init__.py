"""The question of the paper, taken apart: what pruning costs, by which cause, and what Reg4Pru brings back."""
