"""Tokens over checkpoints: nll tables, the four classes, their text."""
