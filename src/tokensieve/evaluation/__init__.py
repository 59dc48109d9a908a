"""Baselines that models are evaluated beside."""
