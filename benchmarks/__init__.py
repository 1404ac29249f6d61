"""Measurements of the platform as shipped; `make bench` runs them all and prints one table each."""
