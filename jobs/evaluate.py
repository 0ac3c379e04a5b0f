"""What `ray job submit` runs for `beatray evaluate`, with the same arguments, on the job's node.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/evaluate.py OVERRIDES

The cluster needs only the dependencies: the package is taken from the submitted source tree. Paths must be absolute
paths that every node sees, because the job runs in a temporary copy of the tree.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "platform"))

from beatray.commands.job import main

if __name__ == "__main__":
    sys.exit(main("evaluate", sys.argv[1:]))
