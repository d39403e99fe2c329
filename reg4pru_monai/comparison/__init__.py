"""Which network to use: runs of an MLflow store, side by side."""
