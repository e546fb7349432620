"""``python evaluate.py ..`` in a checkout: ``audio-diffusion evaluate ..``, of audio_diffusion/cli/evaluate.py."""

from audio_diffusion.cli.main import run

if __name__ == "__main__":
    run("evaluate")
