"""A folder of recordings into a corpus, a vector for each recording, and which recordings lie near each other.

python examples/first_embedding.py WORK                           # recordings that come with beatray
python examples/first_embedding.py WORK2 --recordings /data/ward  # yours: WFDB, DICOM, SCP-ECG, EDF, XML, mixed
"""

import argparse
import sys
import zipfile
from pathlib import Path

from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

import beatray
from beatray.cli import main as run_beatray

SAMPLE = Path(beatray.__file__).parent / "sample" / "ludb-sample.zip"


def command(*arguments: str) -> None:
    """Run `beatray ...` as a shell would, and stop where it fails."""
    print("\n$ beatray", *arguments, flush=True)
    if run_beatray(list(arguments)) != 0:
        sys.exit(1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("work", type=Path, help="folder for all that is made")
    options.add_argument("--recordings", type=Path, help="folder of your own recordings")
    options.add_argument("--limit", default="100", help="read at most so many recordings (default: 100)")
    options.add_argument("--encoder", default="beatray-small", help="a run of yours instead of the bundled weights")
    given = options.parse_args()

    recordings = given.recordings or given.work / "recordings"
    if given.recordings is None and not recordings.exists():
        zipfile.ZipFile(SAMPLE).extractall(recordings)

    corpus, vectors = given.work / "files-corpus", given.work / "vectors"
    command("ingest", f"files={recordings}", f"limit={given.limit}", "--out", str(corpus))
    command("embed", f"encoder={given.encoder}", f"corpus={corpus}", f"out={vectors}", "level=recording")

    found = beatray.read_embeddings(str(vectors))
    print(f"\n{len(found)} recordings, a vector of {found.vectors.shape[1]} numbers each")

    variance = PCA(2).fit(found.vectors).explained_variance_ratio_
    print(f"the first two principal components hold {variance[0]:.0%} and {variance[1]:.0%} of the variance")

    distances, neighbours = NearestNeighbors(n_neighbors=4, metric="cosine").fit(found.vectors).kneighbors()
    for row in range(3):
        near = zip(neighbours[row], distances[row], strict=True)
        print(f"nearest to {found.record_id[row]}:", *(f"{found.record_id[k]} ({far:.3f})" for k, far in near))


if __name__ == "__main__":
    main()
