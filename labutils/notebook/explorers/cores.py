"""How many cores a background thread computes on."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

CHANGING = threading.Lock()  # held while the number that new threads get is another


def use_one_core() -> None:
    """Let this thread compute on one core; all other threads, those that start later among them, keep theirs.

    torch.set_num_threads sets two numbers: that of the thread which calls it, and that with which later threads start.
    So another new thread notes the second one first, and puts it back.
    """
    torch.get_num_threads()  # a thread's first call gives it the common number, and must not come later
    with CHANGING, ThreadPoolExecutor(1) as other:
        common = other.submit(torch.get_num_threads).result()
        torch.set_num_threads(1)
        other.submit(torch.set_num_threads, common).result()
