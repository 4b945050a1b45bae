"""Counts the rows of the table of situations: how many stand for each number, and how often they are run.

.venv/bin/python -m scripts.situations
"""

import re
from collections import Counter

from tests.contract.test_situations import FROM_MAIL, OPENINGS, TABLE


def main() -> None:
    numbers = Counter(re.match(r"\d+[a-z]?", row.id)[0] for row in (*OPENINGS, *FROM_MAIL))  # type: ignore[index]
    for number, count in sorted(numbers.items(), key=lambda one: (int(re.sub(r"\D", "", one[0])), one[0])):
        print(f"{number:>5}{count:5}")
    print(
        f"{len(numbers)} situations in {numbers.total()} rows; with the {len(FROM_MAIL)} that get as far as MAIL once "
        f"more without PIPELINING {len(TABLE)}; on two event loops {2 * len(TABLE)} runs"
    )


if __name__ == "__main__":
    main()
