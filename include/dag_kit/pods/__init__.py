"""Training steps as Kubernetes pods: operators, triggers, and how a pod's end is judged."""
