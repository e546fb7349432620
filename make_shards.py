"""``python make_shards.py ..`` in a checkout: ``audio-diffusion pack ..``, of audio_diffusion/cli/make_shards.py."""

from audio_diffusion.cli.main import run

if __name__ == "__main__":
    run("make_shards")
