"""Documents to rows: units of work, packing, and the corpus made of their parts."""
