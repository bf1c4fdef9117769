"""The model registry in MLflow: students with lineage and scores, promotion, and rollback."""
