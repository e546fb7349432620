"""What keeps a run's folder whole? Files written safely and verified; one owner at a time. Knows torch alone."""
