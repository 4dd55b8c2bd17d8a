"""The pages people look at: static files that read the public API and nothing else."""
