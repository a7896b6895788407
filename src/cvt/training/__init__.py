"""Training: a config, what the data makes of it, and the loop. The config is cheap to import."""
