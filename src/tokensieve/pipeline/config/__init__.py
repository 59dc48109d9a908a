"""Configs from files and words: types, places of errors, help."""
