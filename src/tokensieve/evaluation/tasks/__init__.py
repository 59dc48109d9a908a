"""Few-shot tasks through lm-evaluation-harness, from files on this disk: what is asked, how, and how answers count."""
