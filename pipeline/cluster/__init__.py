"""Ray jobs: client, submission, logs, listing and Kubernetes manifests."""
