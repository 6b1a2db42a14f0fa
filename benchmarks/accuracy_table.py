"""Evaluates thousands of configurations of the built-in supernet, for benchmarks/sampler_quality.py. Wants a GPU.

    python benchmarks/accuracy_table.py runs/table --configurations 3000 --images 500
    python benchmarks/accuracy_table.py runs/table --rank 1 --ranks 4 --device cuda:1      # one process for each GPU
    python benchmarks/accuracy_table.py runs/table --merge benchmarks/data/digits_accuracies.csv.gz

Half of them are spread evenly over the latencies of the space; the others are mutations of the best of those known by
then, layer upon layer of fronts, so that the table is dense where searches go. No model of accuracy takes part in that:
a sampler with one would be favoured. What a process has evaluated it keeps in a file of its own, saved every minute;
typed again, it goes on.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsevit.errors import UserError
from sparsevit.latency.model import LatencyModel
from sparsevit.latency.target import Target
from sparsevit.search.candidates import Candidates, find_candidates
from sparsevit.search.evaluator import Evaluator
from sparsevit.search.results import Bounds
from sparsevit.search.samplers.improvement import front_of
from sparsevit.search.variation import mutate
from sparsevit.sparsity import SparsitySpace, windows_per_stage

METRIC = "bbox_mAP"
SIZE = (448, 448)
STRATA = 50
LAYERS = 3
"""Fronts, one below the other, whose mutations are evaluated."""

SAVE_S = 60.0
WAIT_S = 900.0
"""How long other processes wait for the first one's latency model."""


@dataclass
class Part:
    """What one process has evaluated, in a file.

    Attributes:
        path: of the file.
        figures: metrics by the text of a configuration.
    """

    path: Path
    figures: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Part:
        """What is in the file, if there is one."""
        if not path.exists():
            return cls(path)
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        return cls(path, {row.pop("configuration"): {key: float(value) for key, value in row.items()} for row in rows})

    def save(self) -> None:
        text = io.StringIO(newline="")
        names = list(next(iter(self.figures.values()), {METRIC: 0.0}))
        writer = csv.DictWriter(text, ["configuration", *names])
        writer.writeheader()
        writer.writerows({"configuration": name} | figures for name, figures in self.figures.items())
        write(self.path, text.getvalue().encode())


def write(path: Path, content: bytes) -> None:
    """The whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def everything(model: LatencyModel) -> Candidates:
    """All distinct configurations of the model's space, whatever they take."""
    return find_candidates(model.space, model.windows, model.predict_levels, Bounds(0.0, np.inf))


def evaluate(
    evaluator: Evaluator,
    candidates: Candidates,
    part: Part,
    *,
    count: int,
    images: int,
    seed: int,
    rank: int = 0,
    ranks: int = 1,
    until: float = np.inf,
) -> None:
    """Bring a part to `count` configurations, or as many as there is time for.

    Args:
        evaluator: judges them.
        candidates: all of the space.
        part: grows, and is saved.
        count: configurations of this part.
        images: the first so many judge.
        seed: the same for all processes.
        rank: of this process; configurations are divided among processes, so none is evaluated twice.
        ranks: processes.
        until: `time.monotonic()` at which to stop.
    """
    saved = time.monotonic()
    known = [candidates.row(candidates.space.parse(text)) for text in part.figures]
    try:
        while len(part.figures) < count and time.monotonic() < until:
            rng = np.random.default_rng([seed, rank, len(known)])
            row = _next(candidates, part, np.array(known, np.intp), count, rng, rank, ranks)
            if row is None:
                break
            sparsity = candidates.sparsity(row)
            part.figures[str(sparsity)] = dict(evaluator.accuracy(sparsity, images=images))
            known.append(row)
            if time.monotonic() - saved > SAVE_S:
                part.save()
                saved = time.monotonic()
                print(f"rank {rank}: {len(part.figures)} of {count}", flush=True)
    finally:
        part.save()


def _next(
    candidates: Candidates,
    part: Part,
    known: NDArray[np.intp],
    count: int,
    rng: np.random.Generator,
    rank: int,
    ranks: int,
) -> int | None:
    """A row of this process that is not known yet; none when all are."""
    mine = np.arange(len(candidates)) % ranks == rank
    mine[known] = False
    place = len(part.figures)
    for drawn in () if place < count // 2 else _mutations(candidates, part, known, rng):
        if mine[drawn]:
            return int(drawn)
    left = np.flatnonzero(mine)
    if not len(left):
        return None
    for row in (candidates.row(candidates.space.dense), 0) if place < 2 else ():
        if mine[row]:
            return row
    edges = np.linspace(candidates.ms[0], candidates.ms[-1], STRATA + 1)
    middle = edges[place % STRATA] + rng.random() * (edges[1] - edges[0])
    # Of those nearest to a latency any: neighbours in latency are not neighbours in ratios.
    nearest = np.searchsorted(candidates.ms[left], middle)
    return int(rng.choice(left[max(nearest - 16, 0) : nearest + 16]))


def _mutations(candidates: Candidates, part: Part, known: NDArray[np.intp], rng: np.random.Generator) -> Iterator[int]:
    """Rows of mutations of configurations on the first fronts of what is known."""
    accuracies = np.array([figures[METRIC] for figures in part.figures.values()])
    ms, left = candidates.ms[known], np.ones(len(known), bool)
    parents: list[int] = []
    for _ in range(LAYERS):
        front = set(zip(*front_of(ms[left], accuracies[left]), strict=True)) if left.any() else set()
        on = np.array([pair in front for pair in zip(ms, accuracies, strict=True)]) & left
        parents += known[on].tolist()
        left &= ~on
    genomes = candidates.canonical(candidates.levels_of(rng.choice(np.array(parents), 256)))
    yield from (int(row) for row in candidates.rows(mutate(genomes, candidates.choices, rng)) if row >= 0)


def merge(folder: Path, out: Path, images: int, notes: Sequence[str] = ()) -> int:
    """Write all parts of a folder as one table, fastest first; returns how many configurations it has.

    Args:
        images: that judged each.
        notes: further lines for the table's head, such as which devices judged.

    Raises:
        UserError: if there is nothing to merge.
    """
    model = _stored(folder)
    figures: dict[str, Mapping[str, float]] = {}
    for path in sorted(folder.glob("part-*.csv")):
        figures |= Part.open(path).figures
    if model is None or not figures:
        raise UserError(f"{folder} has no latency.json with part-*.csv beside it: evaluate first")
    ms = {name: model.predict(model.space.parse(name)) for name in figures}
    names = sorted(set.intersection(*(set(one) for one in figures.values())))
    text = io.StringIO(newline="")
    text.write(
        f"# the built-in supernet on {images} images of its validation set; ms as predicted for {model.target}\n"
    )
    text.writelines(f"# {note}\n" for note in notes)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["configuration", "images", *names, "ms"])
    for name in sorted(figures, key=lambda one: (ms[one], one)):
        writer.writerow([name, images, *(f"{figures[name][one]:.6g}" for one in names), f"{ms[name]:.6g}"])
    write(out, gzip.compress(text.getvalue().encode(), mtime=0))
    return len(figures)


def _stored(folder: Path) -> LatencyModel | None:
    path = folder / "latency.json"
    return LatencyModel.from_json(path.read_text()) if path.exists() else None


def _latencies(folder: Path, evaluator: Evaluator, target: Target, rank: int) -> LatencyModel:
    """The folder's latency model; the first process fits it, before the others make the GPUs busy."""
    from sparsevit.latency.fitting import fit

    started = time.monotonic()
    while (model := _stored(folder)) is None:
        if rank == 0:
            model = fit(evaluator.backbone(), target, SparsitySpace())
            write(folder / "latency.json", model.to_json().encode())
        elif time.monotonic() - started > WAIT_S:
            raise UserError(f"no {folder / 'latency.json'} after {WAIT_S:.0f} s: start the process of rank 0")
        else:
            time.sleep(2)
    if model.windows != windows_per_stage(SIZE):
        raise UserError(f"{folder / 'latency.json'} is of another image size than {SIZE[0]}×{SIZE[1]}")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of what has been evaluated so far")
    parser.add_argument("--configurations", type=int, default=3000, help="of all processes together")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=0, help="of this process")
    parser.add_argument("--ranks", type=int, default=1, help="processes")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--engine", default="graph", help="of the latencies")
    parser.add_argument("--batch", type=int, default=50, help="images judged at once")
    parser.add_argument("--minutes", type=float, default=np.inf, help="stop after so many")
    parser.add_argument("--merge", type=Path, metavar="TABLE", help="write the table of all parts, and nothing else")
    parser.add_argument("--note", action="append", default=[], help="a line for the table's head, with --merge")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    try:
        if options.merge:
            print(
                f"{options.merge}: {merge(options.folder, options.merge, options.images, options.note)} configurations"
            )
            return
        from sparsevit.openmmlab.evaluator import detector_evaluator

        target = Target(device=options.device, dtype=options.dtype, batch=4, size=SIZE, engine=options.engine).resolve()
        evaluator = detector_evaluator(
            config="builtin:digits/supernet.py",
            checkpoint="builtin:digits",
            batch=options.batch,
            device=options.device,
            dtype=options.dtype,
        )
        candidates = everything(_latencies(options.folder, evaluator, target, options.rank))
        part = Part.open(options.folder / f"part-{options.rank}-of-{options.ranks}-seed-{options.seed}.csv")
        share = len(range(options.rank, options.configurations, options.ranks))
        evaluate(
            evaluator,
            candidates,
            part,
            count=share,
            images=options.images,
            seed=options.seed,
            rank=options.rank,
            ranks=options.ranks,
            until=until,
        )
        print(f"rank {options.rank}: {len(part.figures)} of {share}")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
