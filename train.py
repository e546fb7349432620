"""``python train.py ..`` in a checkout, ``audio-diffusion train ..`` elsewhere: audio_diffusion/cli/train.py."""

from audio_diffusion.cli.main import run

if __name__ == "__main__":
    run("train")
