"""Removal of what runs and caches no longer need."""
