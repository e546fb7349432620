"""Support for clusters: stop requests, a watchdog for stuck runs, and launching under Slurm."""
