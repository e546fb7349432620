"""``python sample.py ..`` in a checkout, ``audio-diffusion sample ..`` elsewhere: audio_diffusion/cli/sample.py."""

from audio_diffusion.cli.main import run

if __name__ == "__main__":
    run("sample")
