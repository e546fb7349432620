"""How fast are batches of audio made, against other loaders and what a user could write by hand?

    python benchmarks/data/run.py [--quick] [--only tracks_65536 ..] [--files FOLDER] [--peers data/peers]

Makes its own audio on first use (in ``--corpora``, 4 GB; ``--quick`` 0.5 GB), or takes a folder of the user's. The
compared ways run in turn, each in a process of its own. The peers' interpreter is made as peers.txt says; a peer that
is not there is named. Writes RESULTS.md beside this file, or prints only, with ``--quick``, ``--only`` or ``--files``.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import corpora
import inside
import report
from report import ONE_WORKER, OURS, PCM, TAR, Ways
from serve import Row

HERE = Path(__file__).parent
HOSTS = {  # which interpreter and script each way needs
    "ours.py": [OURS, TAR, PCM, "webdataset + full decode"],
    "peers.py": ["stable-audio-tools", "audio-data-pytorch", "litdata + seek", "MDS + seek"],
}
DEFAULT_BACKEND = "audio-data-pytorch, default backend"


class Server:
    """A process that loads when it is asked, see serve.py."""

    def __init__(self, python: str, script: str, log: Path):
        self.process = subprocess.Popen(
            [python, str(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(log, "w", encoding="utf-8"),  # noqa: SIM115
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, **order: object) -> dict:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps(order), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            return {"error": f"its process ended with status {self.process.wait()}"}


def rows(root: Path) -> dict[str, Row]:
    """The corpora's crops, at the files' rate and at 16 kHz."""
    made = {}
    for encoding, kind in (("flac", ""), ("wav", "pcm16_")):
        make = partial(Row, encoding=encoding)
        music = partial(make, rate_in=44_100)
        tracks, clips, speech = (str(root / name) for name in ("tracks", "clips", "speech"))
        made[f"{kind}tracks_65536"] = music(tracks, sample_rate=44_100, channels=2, num_samples=2**16, batch_size=8)
        made[f"{kind}tracks_2m"] = music(tracks, sample_rate=44_100, channels=2, num_samples=2**21, batch_size=4)
        made[f"{kind}tracks_16k_65536"] = music(tracks, sample_rate=16_000, channels=1, num_samples=2**16, batch_size=8)
        made[f"{kind}tracks_16k_2m"] = music(tracks, sample_rate=16_000, channels=1, num_samples=2**21, batch_size=4)
        made[f"{kind}clips_65536"] = music(clips, sample_rate=44_100, channels=2, num_samples=2**16, batch_size=8)
        made[f"{kind}speech_65536"] = make(
            speech, rate_in=16_000, sample_rate=16_000, channels=1, num_samples=2**16, batch_size=8
        )
    return made


def users_rows(folder: Path, root: Path) -> dict[str, Row]:
    corpus, encoding, rate, channels = corpora.from_folder(folder, root)
    own = partial(Row, str(corpus), encoding, rate)
    return {
        "own_65536": own(sample_rate=rate, channels=channels, num_samples=2**16, batch_size=8),
        "own_2m": own(sample_rate=rate, channels=channels, num_samples=2**21, batch_size=4),
        "own_16k_65536": own(sample_rate=16_000, channels=1, num_samples=2**16, batch_size=8),
    }


def start(ways: list[str], peers: Path, logs: Path) -> tuple[dict[str, Server], dict[str, str]]:
    """A process for each way, and why others have none."""
    servers, absent = {}, {}
    for script, names in HOSTS.items():
        python = sys.executable if script == "ours.py" else str(peers / "bin" / "python")
        for name in [*names, *([ONE_WORKER] if script == "ours.py" else [DEFAULT_BACKEND])]:
            if name in ways and Path(python).exists():
                servers[name] = Server(python, script, logs / f"{name}.log")
            elif name in ways:
                absent[name] = f"no environment at {peers}: see peers.txt"
    return servers, absent


def in_turn(row: Row, servers: dict[str, Server], repeats: int, seconds: float) -> Ways:
    """What each way answers, repeat by repeat; a text where it fails."""
    found: Ways = {}
    for name, server in servers.items():
        workers, way = (1, OURS) if name == ONE_WORKER else (row.num_workers, name)
        answer = server.ask(row=asdict(replace(row, num_workers=workers)), way=way)
        found[name] = answer.get("error", [])
    for _ in range(repeats):
        for name, server in servers.items():
            if isinstance(sofar := found[name], list):
                answer = server.ask(seconds=seconds)
                found[name] = answer.get("error", [*sofar, answer])
    return found


def ways_of(name: str) -> list[str]:
    """What is compared in a row: peers over FLAC, the memory map over PCM16."""
    if name.startswith("pcm16"):
        return [OURS, ONE_WORKER, PCM]
    slow = [DEFAULT_BACKEND] if name == "tracks_65536" else []  # 60 s for a figure that is known to be small
    return [OURS, ONE_WORKER, TAR, "webdataset + full decode", *HOSTS["peers.py"], *slow]


def throughput(chosen: dict[str, Row], peers: Path, logs: Path, repeats: int, seconds: float) -> dict[str, Ways]:
    """row -> way -> what was measured."""
    servers, absent = start(sorted({way for name in chosen for way in ways_of(name)}), peers, logs)
    table: dict[str, Ways] = {}
    for name, row in chosen.items():
        ways = [way for way in ways_of(name) if way in servers]
        table[name] = in_turn(row, {way: servers[way] for way in ways}, repeats, seconds)
        table[name] |= {way: absent[way] for way in ways_of(name) if way in absent}
        print(report.row_text(name, table[name]), flush=True)
    for server in servers.values():
        server.process.kill()
    return table


def two_workers(chosen: dict[str, Row], logs: Path, pairs: int, seconds: float) -> dict[str, Ways]:
    """One worker and two, in pairs: row -> number of workers -> what was measured, by the wall's clock."""
    servers = {count: Server(sys.executable, "ours.py", logs / f"{count} workers.log") for count in ("1", "2")}
    table = {}
    for name, row in chosen.items():
        for count, server in servers.items():
            server.ask(row=asdict(replace(row, num_workers=int(count))), way=OURS)
        answers = [{count: server.ask(seconds=seconds) for count, server in servers.items()} for _ in range(pairs)]
        table[name] = {count: [answer[count] for answer in answers] for count in servers}
        print(report.workers_text(name, table[name]), flush=True)
    for server in servers.values():
        server.process.kill()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little audio, few repeats")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="these rows of the first table")
    parser.add_argument("--files", type=Path, help="a folder of audio, all of one encoding, rate and width")
    parser.add_argument("--corpora", type=Path, default=Path("data/bench"), help="where the audio is made")
    parser.add_argument("--peers", type=Path, default=Path("data/peers"), help="the peers' environment")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="CPU time of one measurement")
    options = parser.parse_args()
    root = options.corpora / ("quick" if options.quick else "full")
    root.mkdir(parents=True, exist_ok=True)
    if options.files is None:
        corpora.make(root, options.quick)
    every = users_rows(options.files, root) if options.files else rows(root)
    if unknown := set(options.only) - set(every):
        parser.error(f"--only: expected any of {', '.join(every)}, got {', '.join(unknown)}")
    chosen = {name: row for name, row in every.items() if name in (options.only or every)}
    partly = options.quick or bool(options.only) or options.files is not None

    repeats = 2 if options.quick else options.repeats
    before = [*report.machine(), f"peers as pinned in peers.txt; {repeats} repeats of {options.seconds} s or one batch"]
    table = throughput(chosen, options.peers, root, repeats, options.seconds)
    if partly and not options.quick:
        return
    plain = {name: row for name, row in chosen.items() if row.sample_rate == row.rate_in and "tracks" in name}
    # longer than the rest: with workers a window begins and ends between batches, of which 2^21 samples make few
    workers = two_workers(plain, root, pairs=3 if options.quick else 7, seconds=4 * options.seconds)
    looked = inside.run(plain, {name: row for name, row in chosen.items() if "tracks" in name})
    crops_s = {name: row.num_samples / row.sample_rate for name, row in chosen.items()}
    text = report.write(before, table, workers, looked, crops_s)
    print(text)
    if not partly:
        (HERE / "RESULTS.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
