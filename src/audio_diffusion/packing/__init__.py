"""Creates shards: checks, cuts, encodes and packs folders of audio; verifies shards; makes a synthetic data set."""
