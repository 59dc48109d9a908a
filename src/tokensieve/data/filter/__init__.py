"""Documents -> a table that says of each whether a corpus takes it: what ``filter`` does, as far as it needs no model."""
