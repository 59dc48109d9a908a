"""Sources of text: files, rows, packages; each document once."""
