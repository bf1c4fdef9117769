"""Everything that wires the method to Ray, storage and MLflow."""
