"""Drivers launch workers: as processes, later as containers. One interface."""
