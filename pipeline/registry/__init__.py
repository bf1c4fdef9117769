"""The model registry in MLflow: students with their lineage and scores, a champion, and the way back."""
