"""``python export.py ..`` in a checkout, ``audio-diffusion export ..`` elsewhere: audio_diffusion/cli/export.py."""

from audio_diffusion.cli.main import run

if __name__ == "__main__":
    run("export")
