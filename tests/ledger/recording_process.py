"""A process that records calls until it is killed.

``recording_process.py <database url> <instance folder> <count> <threads>``.

Prints the id of each call after it is acknowledged, one a line. Every fifth call is a stream whose start is recorded
first; every hundredth call never ends. Says ``done`` at the end and waits. With a count of 0 it records for ever, some
hundred calls a second and thread. With a fifth argument it forks before ``done``, and says the child's id: the child waits
too.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from pathlib import Path

import sqlalchemy as sa
from ledger_calls import LedgerMaker, calls


def main(url: str, folder: str, count: int, threads: int) -> None:
    ledger = LedgerMaker(sa.make_url(url), Path(folder))()

    def work(seed: int) -> None:
        endless = (record for part in itertools.count() for record in calls(20, seed + 1000 * part))
        for number, record in enumerate(calls(count, seed) if count else endless):
            if not count:
                time.sleep(0.003)
            if number % 5 == 0:
                ledger.started(record)
            if number % 100 == 5:
                os.write(1, f"started {record.id}\n".encode())
                continue
            ledger.append(record)
            os.write(1, f"ended {record.id}\n".encode())

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if len(sys.argv) > 5 and (child := os.fork()):
        os.write(1, f"{child}\n".encode())
    os.write(1, b"done\n")
    time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
