"""What else can be made of a denoiser: parts kept, long signals, variations, blends, repairs; by the same samplers."""
