"""Few-shot tasks through lm-evaluation-harness, from files on this disk: what they are, how they are asked, how answers count."""
