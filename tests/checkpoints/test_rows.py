"""The local log of a run that is resumed from an older step."""

from audio_diffusion.checkpoints.rows import last_step, rewind


def test_rows_of_later_steps_and_a_cut_off_line_go(tmp_path):
    log = tmp_path / "metrics.jsonl"
    assert rewind(log, 3) == 0
    assert last_step(log) == -1
    log.write_text(
        '{"step": 2, "a": 1}\n{"step": 3, "a": NaN}\n{"step": 3, "b": 2}\n{"step": 4, "a": 1}\n{"step": 5, "a'
    )
    assert last_step(log) == 4
    assert rewind(log, 3) == 2
    assert log.read_text() == '{"step": 2, "a": 1}\n{"step": 3, "a": NaN}\n{"step": 3, "b": 2}\n'
    assert rewind(log, 3) == 0
    assert rewind(log, 0) == 3
    assert log.read_text() == ""
