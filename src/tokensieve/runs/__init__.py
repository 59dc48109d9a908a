"""Folders that stages write: errors, files, manifests, what makes two works the same, stages, versions, run logs."""
