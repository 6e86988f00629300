"""A process that forks without Python knowing of it, as uWSGI does, so that no hooks run; its children record calls.

``forking_process.py <database url> <instance folder> <write mode>``.

It has a connection to its ledger, and one thread, as such a fork copies whatever another thread holds at that moment. Prints
what of the ids is not their time, one a line.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import sqlalchemy as sa
from ledger_calls import LedgerMaker, calls

from flask_llm_cost.ledger.models import Call


def main(url: str, folder: str, mode: str) -> None:
    ledger = LedgerMaker(sa.make_url(url), Path(folder))(write_mode=mode)
    with ledger.session(replica=False) as session:
        assert session.scalar(sa.select(sa.func.count(Call.id))) == 0
    children = []
    for _ in range(3):
        child = ctypes.PyDLL(None).fork()
        if not child:
            records = calls(10)
            for record in records:
                ledger.append(record)
            os.write(1, "".join(f"{record.id.hex[16:]}\n" for record in records).encode())
            os._exit(0 if ledger.flush(120) else 2)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    ledger.append(*calls(1))
    assert ledger.flush(120)
    ledger.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
