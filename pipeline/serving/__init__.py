"""The server of a registered model: an image API and a page on Ray Serve, which follow an alias of MLflow."""
