"""`python -m tools bench`: image rates of data loaders, measured side by side."""
