"""A checkpoint's parts from disk or the Hub: read, checked, and named as ours are."""
