"""Everything that wires the method to Ray, storage and MLflow."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is first imported
