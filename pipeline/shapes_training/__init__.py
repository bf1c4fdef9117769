"""Training of the bundled networks of the Shapes toy dataset."""
