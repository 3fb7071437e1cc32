"""What runs inside a Kubernetes cluster: the job that makes the secrets, and the jobs of backups and drills, which say how they went."""
