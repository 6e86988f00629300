"""A process that asks, and says the id of each reply that it got: ``asking_process.py <threads> <calls each> <first number>
<then>``.

*then* is ``wait`` (for its end by a signal), ``exit`` (the normal end) or ``_exit`` (without a word to anybody).
"""

from __future__ import annotations

import os
import sys
import threading
import time

from desk import ask, make_app

app = make_app()


def main(threads: int, each: int, first: int, then: str) -> None:
    provider = os.environ["DESK_PROVIDER"]

    def work(start: int) -> None:
        for number in range(start, start + each):
            with app.app_context():
                os.write(1, f"{ask(provider, number)}\n".encode())

    workers = [threading.Thread(target=work, args=(first + index * each,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    os.write(1, b"done\n")
    if then == "wait":
        time.sleep(600)
    elif then == "_exit":
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
