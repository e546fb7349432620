"""Has a class-conditional model learnt? Names generated clips by a classifier of real ones; looks for copies.

    python benchmarks/learnt.py ckpt=runs/quickstart [num_samples=100] [guidance_scale=1]

The classifier (log-mel features, logistic regression) is fitted on the training shards and must name at least 95 % of
the held-out real clips. Of the generated ones at least 80 % must be named as the class that was asked for, they must be
about as far from the training clips as held-out real ones are, and differ among themselves. Exit status 1 if not.
"""

import sys
from collections.abc import Iterable

import torch
from omegaconf import DictConfig

from audio_diffusion.cli import config, program
from audio_diffusion.cli.config import ConfigError, build
from audio_diffusion.cli.own_parts import sampler_of
from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.shards.find import by_name, held_out
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.stream import read_in_order
from audio_diffusion.diffusion.seeding import seed_of
from audio_diffusion.inference import checkpoint_reader
from audio_diffusion.inference.loading import load
from audio_diffusion.metrics.embeddings.log_mel import LogMel
from audio_diffusion.metrics.labelled import LabelProbe, spread_ratio
from audio_diffusion.metrics.memorisation import memorisation
from audio_diffusion.metrics.tonal_noise import noise_between_partials

TONAL_DB = -45.0  # a class of which the real clips have less noise than this between partials is one of tones


def real(model: checkpoint_reader.Model, patterns: Iterable[str]) -> tuple[torch.Tensor, list[str]]:
    """All clips of the shards, ``[N, C, T]``, and their labels."""
    crop, shards = model.crop, Shards.open(list(patterns), RemoteStore(None))
    clips = read_in_order(shards, crop.sample_rate, crop.channels, crop.num_samples, model.classes)
    used = [(samples, model.classes[clip.label]) for clip, samples in clips if clip.num_valid]
    return torch.stack([samples for samples, _ in used]), [label for _, label in used]


@program.entry("learnt")
def main(cfg: DictConfig) -> None:
    """Fit, generate, judge, print."""
    options = config.to_plain(cfg)
    path = checkpoint_reader.find(options["ckpt"])
    model = load(path, weights=options["weights"])
    if not model.classes:
        raise ConfigError("ckpt: the model is unconditional; this benchmark needs classes")
    data = model.origin.data
    assert data is not None
    train, train_labels = real(model, by_name(data.train).values())
    val, val_labels = real(model, held_out(data.train, data.val).values())

    count = options["num_samples"]
    given = options.get("sampler")
    sampler = build(sampler_of(model.origin.nodes["sampler"], given), "sampler") if given else None
    model = model.using(sampler=sampler, guidance=options["guidance_scale"])
    labels = [model.classes[i % len(model.classes)] for i in range(count)]
    seeds = [seed_of(options["seed"], "learnt", i) for i in range(count)]
    batches = [slice(i, i + options["batch_size"]) for i in range(0, count, options["batch_size"])]
    generated = torch.cat([model.generate(seeds[b], labels[b]) for b in batches])

    probe = LabelProbe(model.sample_rate).fit(train, train_labels)
    ceiling, accuracy = probe.accuracy(val, val_labels), probe.accuracy(generated, labels)
    found = memorisation(list(generated), list(train), list(val), model.sample_rate, LogMel(model.sample_rate))
    spread = spread_ratio(generated, labels, val, val_labels, model.sample_rate)
    copies = int((found.generated.correlation > max(0.995, float(found.held_out.correlation.max()))).sum())

    guidance = model.guidance_scale if options["guidance_scale"] is None else options["guidance_scale"]
    print(f"{path}: step {model.step}, {model.weights} weights, guidance {guidance}")
    print(f"classifier on {len(val)} held-out real clips       {ceiling:7.1%}   (needed 95 %)")
    print(f"classifier on {count} generated clips           {accuracy:7.1%}   (needed 80 %)")
    for name in model.classes:
        chosen = [i for i, label in enumerate(labels) if label == name]
        of_class = probe.accuracy(generated[chosen], [name] * len(chosen))
        print(f"    {name:12} {of_class:7.1%}   spread {spread.per_class[name]:.2f}")
    print(f"distance to training clips / real ones'     {found.distance_ratio:7.2f}   (needed 0.5; a copy has 0)")
    print(f"clips that match a training clip's waveform  {copies:6d}   (needed 0)")
    print(f"spread within a class / real ones'          {spread.ratio:7.2f}   (needed 0.5; all alike is 0)")
    floors = {  # by class: the median of real and of generated clips
        name: [float(noise_between_partials(clips[[x == name for x in given]], model.sample_rate).median())
               for clips, given in ((val, val_labels), (generated, labels))]
        for name in model.classes
    }  # fmt: skip
    for name, (floor, ours) in floors.items():
        if floor < TONAL_DB:
            print(f"noise between partials of {name:6}  {ours:6.1f} dB   (real ones {floor:.1f} dB)")
    passed = ceiling >= 0.95 and accuracy >= 0.8 and found.distance_ratio >= 0.5 and not copies and spread.ratio >= 0.5
    print("learnt" if passed else "NOT learnt")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
