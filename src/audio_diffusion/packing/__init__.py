"""How are shards made? Folders of audio checked, cut, encoded and packed; shards verified; a synthetic data set."""
