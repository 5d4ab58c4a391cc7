"""Sends one run to wandb from a process of its own, which `tracking.Mirror` starts by this file's path.

It imports nothing of labutils, and so not torch. It reads JSON lines from stdin: first the arguments of wandb.init,
then an epoch's figures a line, last {"summary": ...}. What it prints is for `Mirror` to report.
"""

import faulthandler
import json
import sys
from collections.abc import Iterator

LIMIT_S = 300  # for the work on one line, and for the rest after the last one: a wandb that hangs is not kept for ever


def read_lines() -> Iterator[dict]:
    """Each line of stdin. Waiting for one takes as long as the training does; the work on it, at most LIMIT_S."""
    while True:
        faulthandler.cancel_dump_traceback_later()
        line = sys.stdin.readline()
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)  # ends the process even in the midst of an import
        if not line.endswith("\n"):  # the end of stdin, or a line that the end cut short
            return
        yield json.loads(line)


def send(lines: Iterator[dict]) -> None:
    """Open the run, log each epoch, close it."""
    opening = next(lines)
    import wandb

    if opening["mode"] == "online" and not wandb.login(prompt=False):
        print("nobody is logged in (remedy: wandb login); the run is kept offline, for wandb sync", flush=True)
        opening["mode"] = "offline"
    run = wandb.init(**opening, settings=wandb.Settings(silent=True, console="off", x_disable_stats=True))
    summary = {"error": "the run was cut short"}  # unless the last line says how it ended
    for line in lines:
        if "summary" in line:
            summary = line["summary"]
        else:
            run.log(line)
    run.summary.update(summary)
    run.finish(exit_code=int("error" in summary))


if __name__ == "__main__":
    try:
        send(read_lines())
    except Exception as error:
        print(f"{type(error).__name__}:", *str(error).split(), flush=True)  # on one line, whatever it says
        sys.exit(1)
