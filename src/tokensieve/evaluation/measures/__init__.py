"""Looking back over checkpoints: a measure a module, each a function of a model at one point of its training."""
