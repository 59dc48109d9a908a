"""Recipes: stages, their plan, and running them side by side."""
