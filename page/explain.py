"""`python -m page.explain`: a line [answer, gold] in, a line out with what `reward.py --explain` says, both JSON.

Answers are hostile, and nothing is to hang the page: memory and time are limited, and a pair on which the grader fails
is only named.
"""

import json
import resource
import sys

from grader import answers
from reward import gold_answer

MEMORY, SECONDS = 2 << 30, 100  # of this process, in bytes and of CPU time


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    for line in sys.stdin:
        answer, gold = json.loads(line)
        try:
            said = answers.explain(answer, gold_answer(gold))
        except Exception as e:  # untrusted text: whatever it brings about says nothing of the others
            said = f"not explained: {type(e).__name__}"
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
