"""Writes a page to listen on, with the sounds, curves and settings of one run, or of several side by side.

audio-diffusion report runs/quickstart                       # runs/quickstart/index.html
audio-diffusion report runs/one runs/two output=both.html
"""

from pathlib import Path

from audio_diffusion.callbacks.page.page import NAME, write_page
from audio_diffusion.cli.config import ConfigError
from audio_diffusion.cli.options import ReportOptions


def main(options: ReportOptions) -> None:
    """Writes the page and prints its path."""
    runs = options.runs
    folders = [Path(run) for run in ([runs] if isinstance(runs, str) else runs)]
    default = folders[0] / NAME if len(folders) == 1 else Path("report.html")
    path = Path(options.output or default)
    try:
        notes = write_page(folders, path)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    for note in notes:
        print(f"note: {note}")
    print(f"written: {path}, to open in a browser")
