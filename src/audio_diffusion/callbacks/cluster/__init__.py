"""What a run needs where others decide how long it lives: being asked to stop, being stuck, being started by Slurm."""
