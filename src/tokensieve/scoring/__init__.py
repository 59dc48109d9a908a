"""A model x a corpus -> per-token statistics, streamed: the one inference path of score, evaluate and dynamics."""
