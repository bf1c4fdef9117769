"""Measurements of the server of a registered model."""
