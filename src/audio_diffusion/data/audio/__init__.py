"""Audio files: decoding, cropping, resampling, and files whose headers are wrong."""
