"""How fast each stage of a training runs, against the floor of its networks on this machine.

    python tools/bench_train.py [DATA] [--preset quick] [--set KEY=VALUE] [--steps 6] [--rounds 3]
                                [--json FILE]

For the pre-training of each scale, and for IGD's: pictures a second of the real loop; the same
steps' networks alone, forward and backward on one fixed batch, which is the floor; and drawing and
augmenting alone. Loop and floor are timed in turn, round by round, and their ratio is taken within
a round. Without DATA, on rendered frames. On a GPU also how long the paper's schedule for whole
frames would take: 25.6 million passes (2,000 epochs of 1,600 frames in 4 classes, two views each).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ccdstream import sample
from ccdstream.view import HYPERKVASIR, NONE, view_of_image
from trainer.compute import Compute, open_compute
from trainer.config import load_config
from trainer.data import find_data, load_views
from trainer.detectors.igd import Igd, train_igd
from trainer.detectors.networks import PATCH_PX, Critic
from trainer.pretrain import Batches, pretrain
from trainer.runs import Run
from trainer.sampling import MIN_VALID, Patches, Pool, Squares
from trainer.train import Networks, checkpoint_config, scales, untrained

PAPER_PASSES = 25_600_000
"""Of the global pre-training, as `trainer/presets/paper.toml` has it."""
RENDERED_FRAMES = 24


@dataclass(frozen=True, slots=True)
class Timing:
    """One stage: medians over the rounds."""

    stage: str
    pictures_a_step: int
    loop_ms: float
    floor_ms: float
    input_ms: float
    """Drawing and augmenting alone."""
    loop_to_floor: float
    pictures_a_second: float


def frames_of(data: Path | None) -> Pool:
    """Training views of `data`, or rendered ones."""
    if data is None:
        views = [view_of_image(sample.still(seed), NONE) for seed in range(RENDERED_FRAMES)]
        images = np.stack([view.image.transpose(2, 0, 1) for view in views])
        return Pool(torch.from_numpy(images), torch.from_numpy(np.stack([v.valid for v in views])))
    loaded = load_views(find_data(data).train, HYPERKVASIR)
    return Pool(torch.from_numpy(loaded.images), torch.from_numpy(loaded.valid))


def settled(compute: Compute) -> float:
    """The time when the device has done what it was given, in seconds."""
    if compute.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def ms_a_step(compute: Compute, steps: int, step: Callable[[int], object]) -> float:
    """Milliseconds of one step, over `steps` after one that is not counted."""
    step(0)
    started = settled(compute)
    for number in range(1, steps + 1):
        step(number)
    return 1000 * (settled(compute) - started) / steps


def ms_of_loop(compute: Compute, steps: int, loop: Callable[[Run, int], None]) -> float:
    """The same of a real loop, timed by the question that it asks after every step."""
    times: list[float] = []

    def stopped() -> bool:
        times.append(settled(compute))
        return False

    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            Path(folder),
            {},
            resume=False,
            say=lambda _: None,
            on_progress=lambda _: None,
            stopped=stopped,
            checkpoint_every_s=1e9,
            compute=compute,
        )
        loop(run, steps + 2)  # the first warms up, the last may do more than a step
    return 1000 * (times[-2] - times[0]) / steps


def compared(
    stage: str,
    pictures: int,
    rounds: int,
    loop: Callable[[], float],
    floor: Callable[[], float],
    inputs: Callable[[], float],
) -> Timing:
    """Time loop and floor in turn."""
    loops, floors, inputs_ms = [], [], []
    for _ in range(rounds):
        floors.append(floor())
        loops.append(loop())
        inputs_ms.append(inputs())
    loop_ms = statistics.median(loops)
    return Timing(
        stage,
        pictures,
        loop_ms,
        statistics.median(floors),
        statistics.median(inputs_ms),
        statistics.median(a / b for a, b in zip(loops, floors, strict=True)),
        1000 * pictures / loop_ms,
    )


def time_pretraining(
    networks: Networks, frames: Pool, side: int, compute: Compute, steps: int, rounds: int
) -> Timing:
    """The pre-training of a scale; `side`: of the pictures that `frames` are averaged down to."""
    scale, seen = networks.scale, frames.shrunk(side)
    config = scale.pretrain
    share = config.min_valid or MIN_VALID
    if scale.name == "global":
        items = Squares(frames, scale.size_px, share).draw
    else:
        items = Patches(seen, PATCH_PX, share).draw
    pairs = Patches(seen, config.position_patch_px, share).draw_pairs
    backbone = compute.place(networks.backbone).train().requires_grad_(True)
    net = compute.compiled(backbone)
    batches = Batches(items, pairs, config, scale.size_px, compute)
    batch = batches.draw(compute.generator(0))

    def bare(_: int) -> None:
        backbone.zero_grad()
        with compute.autocast():
            total = net(batch.views).float().sum()
            if batch.pair is not None:
                total = total + net(batch.pair).float().sum()
        total.backward()

    def loop(run: Run, count: int) -> None:
        name = f"pretrain_{scale.name}"
        pretrain(name, backbone, items, pairs, config, count, run, size_px=scale.size_px, seed=0)

    return compared(
        f"pretrain_{scale.name}",
        len(batch.views),
        rounds,
        lambda: ms_of_loop(compute, steps, loop),
        lambda: ms_a_step(compute, steps, bare),
        lambda: ms_a_step(compute, steps, lambda n: batches.draw(compute.generator(n))),
    )


def time_igd(
    networks: Networks, frames: Pool, side: int, compute: Compute, steps: int, rounds: int
) -> Timing:
    """IGD's loop of a scale, without its estimates of centre and spread."""
    scale, seen = networks.scale, frames.shrunk(side)
    config = scale.igd
    draw = seen.frames if scale.name == "global" else Patches(seen, PATCH_PX).draw
    igd = networks.detector
    assert isinstance(igd, Igd)
    critic = compute.place(Critic(igd.size_px, config.width))
    compute.place(igd).train()
    x, _ = draw(config.batch_size, compute.generator(0))
    x = x.contiguous(memory_format=torch.channels_last)

    def bare(_: int) -> None:
        igd.zero_grad()
        with compute.autocast():
            z = igd.encoder(x)
            x_hat, mix = igd.decoder(z), igd.decoder(z.flip(0))
            total: Tensor = x_hat.float().sum() + critic(mix).float().sum()
        total.backward()
        critic.zero_grad()
        with compute.autocast():
            seen_again = critic(mix.detach()).float().sum() + critic(x_hat.detach()).float().sum()
        seen_again.backward()

    def loop(run: Run, count: int) -> None:
        train_igd(f"igd_{scale.name}", igd, draw, config, count, run, seed=0)

    return compared(
        f"igd_{scale.name}",
        len(x),
        rounds,
        lambda: ms_of_loop(compute, steps, loop),
        lambda: ms_a_step(compute, steps, bare),
        lambda: ms_a_step(compute, steps, lambda n: draw(len(x), compute.generator(n))),
    )


def main() -> None:
    """Print the table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config = load_config(arguments.preset, None, [*arguments.set, "detector=igd"])
    timings = []
    with open_compute(config.compute) as compute:
        frames = frames_of(arguments.data).to(compute.device)
        for scale in scales(config):
            whole = scale.name == "global"
            side = config.global_size_px if whole else config.local_size_px
            networks = untrained(config, scale)
            for measure in (time_pretraining, time_igd):
                timings.append(
                    measure(networks, frames, side, compute, arguments.steps, arguments.rounds)
                )
        description = f"{config.name}, {compute.description}, torch {torch.__version__}"
    print(f"{description}, {torch.get_num_threads()} threads, {len(frames)} frames in memory")
    print(
        "| stage | pictures a step | loop ms | floor ms | input ms | input share of the loop | "
        "loop / floor | pictures/s |"
    )
    print("| --- " * 8 + "|")
    for t in timings:
        print(
            f"| {t.stage} | {t.pictures_a_step} | {t.loop_ms:.1f} | {t.floor_ms:.1f} | "
            f"{t.input_ms:.1f} | {100 * t.input_ms / t.loop_ms:.1f} % | {t.loop_to_floor:.2f} | "
            f"{t.pictures_a_second:.0f} |"
        )
    whole_frames = next((t for t in timings if t.stage == "pretrain_global"), None)
    if whole_frames is not None:
        hours = PAPER_PASSES / whole_frames.pictures_a_second / 3600
        print(f"{PAPER_PASSES / 1e6:.1f} million pictures of {config.global_size_px} px at that")
        print(f"rate: {hours:.1f} hours")
    if arguments.json is not None:
        document = {
            "description": description,
            "config": checkpoint_config(config),
            "timings": [asdict(t) for t in timings],
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
