"""Selective training on the Hugging Face Trainer: the weighted loss, its one division, and a log of what was selected."""
