"""Not a test: trains like train.py, but says and waits after each micro-batch, so that a test can kill it there."""

import sys
import time
from pathlib import Path

import diffusion.training.module as module
from configs import compose
from configs.cli import stop
from diffusion import commands


def main() -> None:
    plain, count = module.Training.training_step, 0

    def slow(self, batch, batch_idx):
        nonlocal count
        loss = plain(self, batch, batch_idx)
        count += 1
        print(f"micro {count}", flush=True)
        time.sleep(0.05)
        return loss

    module.Training.training_step = slow
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        commands.train(compose("train", [f"run.root={Path(sys.argv[1])}", *sys.argv[2:]]), "test")
    except KeyboardInterrupt:
        stop("interrupted", 130)


if __name__ == "__main__":
    main()
