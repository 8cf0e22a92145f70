"""`llava generate`: its flags, its place on disk, its sources, the run, and what it writes."""
