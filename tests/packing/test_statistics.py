"""Counts that are kept, added up and read back are those of all at once."""

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from audio_diffusion.packing.prepare import Clip, Drop
from audio_diffusion.packing.sources import Source
from audio_diffusion.packing.statistics import Tally

QUIET, LIMITED = {"lufs": None}, {"lufs": -9, "gain_limited": True}
TOLD: list[dict] = [{}, {"label": "a"}, {"label": "b", "clipped": 3}, QUIET, LIMITED]
CLIPS = st.builds(
    lambda frames, level, more: Clip(
        Source(Path("x"), "x"),
        "x",
        "wav",
        b"",
        0,
        {"frames": frames, "sample_rate": 1000, "channels": 1, "level_db": level, **more},
    ),
    st.integers(1, 10**8),
    st.floats(-140, 6),
    st.sampled_from(TOLD),
)
DROPS = st.builds(Drop, st.sampled_from("xyz"), st.sampled_from(["silent", "refused"]), st.just(0.5), st.just(2.0),
                  st.just("so"))  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(CLIPS | DROPS, max_size=8), max_size=6))
def test_parts_that_went_through_the_journal_add_up_to_the_whole(parts: list[list[Clip | Drop]]) -> None:
    whole, added = Tally(), Tally()
    for part in parts:
        tally = Tally()
        for event in part:
            whole.add(event)
            tally.add(event)
        added.merge(Tally.of(json.loads(json.dumps(tally.plain()))))
    for name, value in vars(whole).items():
        if name in ("seconds", "level_sum"):
            assert abs(getattr(added, name) - value) <= 1e-9 * (1 + abs(value))
        else:
            assert getattr(added, name) == value
    events = [event for part in parts for event in part]
    told = added.statistics()
    num_clips = sum(isinstance(event, Clip) for event in events)
    for name in ("durations_s", "levels_dbfs"):
        assert sum(count for _, count in told[name]["histogram"]) == num_clips
    assert sum(told["labels"].values()) + told["unlabelled"] == num_clips
    silent = sum(isinstance(event, Drop) and event.kind == "silent" for event in events)
    assert told["silent"] == {"pieces": silent, "seconds": 2.0 * silent}
    assert len(added.refused) + silent + num_clips == len(events)
