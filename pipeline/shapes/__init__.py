"""The embedded teacher and judges of the world of shapes: how they are trained, and their weights."""
