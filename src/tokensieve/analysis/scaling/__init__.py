"""Laws of scale: numbers of runs in, constants with intervals out. No models, no files."""
