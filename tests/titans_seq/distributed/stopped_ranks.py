"""Run by each of two ranks: some are asked to end by SIGTERM while they make their data. Arguments: texts, output, those ranks."""

import os
import signal
import sys
import warnings
from dataclasses import replace

from domains.text.data import read_texts
from domains.text.model import TitansForCausalLM
from tests.titans_seq.distributed.train_ranks import MODEL, TRAINING
from titans_seq.training.loaders import TrainingLoader, document_loaders
from titans_seq.training.module import TrainingData
from titans_seq.training.run import train


def main(texts: str, output: str, stopped: str) -> None:
    warnings.simplefilter("ignore")
    config = replace(TRAINING, strategy="ddp", devices=2, checkpoint_every=1000)
    make_training, _ = document_loaders(read_texts([texts]), None, config)

    def stop_and_make(rank: int, world_size: int) -> TrainingLoader:
        if str(rank) in stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        return make_training(rank, world_size)

    train(lambda: TitansForCausalLM(MODEL), lambda: TrainingData(stop_and_make, None), config, output, progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
