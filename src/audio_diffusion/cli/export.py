"""Checkpoint -> a folder with weights (safetensors), configuration and model card, without optimizer and data.

python export.py ckpt=runs/quickstart output=exported/quickstart
python sample.py ckpt=exported/quickstart num_samples=5
python -c 'import audio_diffusion; audio_diffusion.push("exported/quickstart", "USER/NAME")'    # ckpt=hub:USER/NAME
"""

import audio_diffusion
from audio_diffusion.cli.options import ExportOptions


def main(options: ExportOptions) -> None:
    """Loads and exports the model, and prints the remaining manual steps."""
    model = audio_diffusion.load(options.ckpt, weights=options.weights, trust=options.trust)
    folder = audio_diffusion.export(model, options.output)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{model.source}: step {model.step}, {model.weights.upper()} weights, {size / 1e6:.1f} MB in {folder}/")
    print(f"to be filled in by hand before you share it: license, data and use, in {folder}/README.md")
