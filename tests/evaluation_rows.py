"""Corpus rows made straight from a source's files, without writing a corpus: what the evaluation tests run on."""

from __future__ import annotations

from itertools import islice

import numpy as np

from beatray.corpus.reader import Rows
from beatray.dsp.analyse import analyse
from beatray.ingest.canonical import to_windows
from beatray.ingest.sources.registry import SOURCES
from beatray.ingest.tree import open_tree


def read_rows(**sources: tuple[str, int]) -> Rows:
    """The first recordings of each `source=(location, count)`, measured as ingest measures them."""
    windows = []
    for name, (location, count) in sources.items():
        tree, source = open_tree(location), SOURCES[name]
        for item in islice(source.find(tree), count):
            for record in source.read(tree, item):
                windows += to_windows(record)
    signal = np.stack([w.signal_uv for w in windows])
    n_samples = np.array([w.n_samples for w in windows], np.int32)
    measured = analyse(signal, n_samples, np.array([w.lead_mask for w in windows], np.int16))
    return Rows(
        record_id=[w.record_id for w in windows],
        patient_id=[w.patient_id for w in windows],
        source=[w.source for w in windows],
        fold=np.array([-1 if w.fold is None else w.fold for w in windows], np.int8),
        signal_uv=signal,
        n_samples=n_samples,
        lead_mask=measured.lead_mask,
        flags=measured.flags,
        r_peaks=measured.r_peaks,
        beat_features=measured.beat_features,
        record_features=measured.record_features,
        labels=[w.labels for w in windows],
        waves=[w.waves for w in windows],
        age=np.array([np.nan if w.age is None else w.age for w in windows], np.float32),
        sex=[w.sex for w in windows],
    )
