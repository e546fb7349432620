"""What else happens during a run? Every side effect: sampling, logging, checkpoints, reports."""
