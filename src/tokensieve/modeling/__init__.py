"""What is known of transformers models: the seam for a token loss, loading, FLOPs. Used by training and scoring."""
