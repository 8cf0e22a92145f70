"""`llava train`: its YAML, rows and weights, the trainer, and what it leaves in the run's folder."""
