"A small grid that the tests train, and a script: `python small_grid.py STORE [workers]` trains it."
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from calibkd.calibrators import MDCA
from calibkd.data import Dataset
from calibkd.distillers import KD
from calibkd.objectives import NLL
from calibkd.runs import Recipe, Run
from calibkd.store import Store
from calibkd.sweep import train

DATA, RECIPE = Dataset("digits", train=400), Recipe(epochs=5, batch=64, schedule="cosine")


def grid():
    teachers = [Run(DATA, "resnet14", objective, RECIPE) for objective in (NLL(), MDCA(beta=5))]
    return [Run(DATA, "resnet8", KD(T=T, alpha=.9), RECIPE, teacher=t) for t in teachers for T in (1, 4)]


def processes():
    "For CALIBKD_EXECUTOR=small_grid:processes"
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


class Counting(ThreadPoolExecutor):
    "For CALIBKD_EXECUTOR=small_grid:Counting: threads that count their jobs"
    jobs = 0

    def __init__(self): super().__init__(2)

    def submit(self, *job, **more):
        Counting.jobs += 1
        return super().submit(*job, **more)


def forked(root):
    "A process that trains the grid, forked from one that has imported what takes longer than the training"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["calibkd.sweep", "sklearn.datasets"])
    process = context.Process(target=main, args=(root,))
    process.start()
    return process


def main(root, workers=1): print("trained", train(grid(), Store(root), workers=int(workers)).trained)


if __name__ == "__main__": main(*sys.argv[1:])
