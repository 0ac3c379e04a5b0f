"""Which names of channels a message may show: those of electrodes and sensors that are known, and no others.

In a damaged or mislabelled file anything can stand where the name of a channel should, a patient's too, and messages go
into a quarantine table that others read. So this is a list of known names, not a rule of how names look.

Contract: `is_known(name)` is true for the twelve leads and the names below, also behind ECG, EKG, EEG or Lead and as a
difference of two of them (Fp1-F7). What may be a person's name in other letters (Ai, Es) is known as devices write it.
Sources: 10-20 system: Klem et al., Electroenceph Clin Neurophysiol Suppl 52:3 (1999); EASI: Dower et al., J
Electrocardiol 21 Suppl:S182 (1988); electrodes C1 to C6: IEC 60601-2-25; others as records on PhysioNet and EDF+ files
(Kemp & Olivan, Clin Neurophysiol 114:1755, 2003) have them.
"""

from __future__ import annotations

import re

from beatray.record import LEADS

_NUMBERED = re.compile(
    r"v[1-9]r?|v1[0-2]|c[1-9]r?|d[1-3]|ml(?:i{1,3}|[1-3])|mcl[1-6]|c[mcs]5"
    r"|fp[12z]|f[3478z]|c[34z]|p[34z]|o[12]|t[3-8]|a[12]|m[12]"
    r"|(?:e[ck]g|eeg|emg|eog|resp|abp|cvp|icp|channel|lead)[ _]?\d{1,2}"
)
"""Leads of the chest and modified limb leads; electrodes of the 10-20 system; signals with a number. Lower case."""
_WORDS = frozenset(
    (
        *(lead.lower() for lead in LEADS),
        *("-avr", "ml i", "ml ii", "ml iii", "vx", "vy", "vz", "nehb d", "nehb a", "nehb j"),
        *("ecg", "ekg", "eeg", "emg", "eog", "resp", "respiration", "spo2", "pleth", "ppg"),
        *("abp", "nibp", "cvp", "icp"),
        *("co2", "etco2", "temp", "flow", "edf annotations", "bdf annotations"),
    )
)
_AS_WRITTEN = frozenset(("X", "Y", "Z", "ES", "AS", "AI", "RA", "LA", "LL", "RL", "V", "HR", "BP"))
_FRONT = re.compile(r"(?:e[ck]g|eeg|lead)[ _:]+", re.IGNORECASE | re.ASCII)


def is_known(name: str) -> bool:
    """Whether a message may show the name of a channel."""
    plain = name.strip()
    plain = plain[found.end() :] if (found := _FRONT.match(plain)) else plain
    one, minus, other = plain.partition("-")
    return _is_listed(name.strip()) or _is_listed(plain) or bool(minus and _is_listed(one) and _is_listed(other))


def _is_listed(name: str) -> bool:
    lower = name.lower()
    return name in _AS_WRITTEN or lower in _WORDS or _NUMBERED.fullmatch(lower) is not None
