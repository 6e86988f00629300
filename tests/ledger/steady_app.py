"""An app that records at a steady rate for a while, and says how much memory it has.

``steady_app.py DATABASE FOLDER CALLS_A_SECOND SECONDS`` prints the kibibytes that it holds each second, then the calls made.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_cost import LlmCostTracker, track


def resident() -> int:
    """Kibibytes of memory that this process has now."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))


def main(database: str, folder: str, rate: int, seconds: int) -> None:
    app = Flask("steady", instance_path=folder)
    app.config["SQLALCHEMY_DATABASE_URI"] = database
    db = SQLAlchemy(app)
    costs = LlmCostTracker(app)
    number = 0
    with app.app_context():
        db.create_all()
        start = time.monotonic()
        for second in range(seconds):
            for _ in range(rate):
                track(
                    "openai",
                    model="gpt-4o-mini",
                    usage={"input": 1000 + number % 7, "cache_read": 200, "output": 50 + number % 11},
                    # Values that never come again: what keeps them would grow.
                    tags={"feature": f"f{number % 12}", "tenant_id": f"t{number % 500}", "user_id": str(number)},
                    response_id=f"chatcmpl-{number}",
                )
                number += 1
                time.sleep(max(0.0, start + number / rate - time.monotonic()))
            print(resident(), flush=True)
            assert time.monotonic() - start < 2 * seconds + 60, second
        assert costs.flush(60)
    print(number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
