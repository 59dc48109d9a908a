"""Results as objects for a notebook: pandas frames, ``datasets``, and what Jupyter shows of a comparison and of tokens."""
