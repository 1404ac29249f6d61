"""Hosts one agent in one process: template, sandbox, loader and server."""
