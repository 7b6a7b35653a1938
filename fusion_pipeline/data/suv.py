"""Units of a PET series and, where the header allows it, the factor to SUV (body weight)."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from pydicom import Dataset

_PHILIPS_SUV = (0x7053, 0x1000)
_PHILIPS_ACTIVITY = (0x7053, 0x1009)


class EmissionScale(NamedTuple):
    """The factor to the rescaled values of a PET series, and their units with it."""

    factor: float
    units: str
    warnings: list[str]


def emission_scale(headers: Sequence[Dataset], place: str) -> EmissionScale:
    """Find the factor from a PET series' rescaled values to SUV.

    Formula: ``SUV = Bq/ml · weight [g] / dose at the reference time [Bq]``, where the dose decays
    from the injection to the series' start if the header's Decay Correction is START, and not at
    all if it is ADMIN.

    Args:
        headers: pydicom data sets of the slices (or of the one multi-frame file).
        place: name of the image in warnings.

    References:
        QIBA, FDG-PET/CT Profile, vendor-neutral pseudo-code for SUV calculation.
    """
    first = headers[0]
    units = str(first.get("Units", "")).strip().upper()
    if units == "GML":
        kind = str(first.get("SUVType", "") or "BW").strip().upper()
        if kind == "BW":
            return EmissionScale(1.0, "SUV", [])
        note = f"{place}: the SUV type is {kind}, not body weight (BW); the values are kept."
        return EmissionScale(1.0, "SUV", [note])
    if units == "CNTS":
        return _from_counts(headers, place)
    if units in ("BQML", ""):
        return _from_activity(headers, place, units_given=bool(units))
    note = f"{place}: PET units are {units}, which is not turned into SUV; the values are kept."
    return EmissionScale(1.0, "a.u.", [note])


def _from_counts(headers: Sequence[Dataset], place: str) -> EmissionScale:
    """Counts: Philips notes a factor to SUV, or else one to Bq/ml, in private elements."""
    suv = _private_number(headers[0], _PHILIPS_SUV)
    if suv:
        return EmissionScale(suv, "SUV", [])
    activity = _private_number(headers[0], _PHILIPS_ACTIVITY)
    if activity:
        factor, units, notes = _from_activity(headers, place, units_given=True)
        return EmissionScale(factor * activity, units, notes)
    note = f"{place}: PET units are counts and no factor to SUV is in the header; values are kept."
    return EmissionScale(1.0, "counts", [note])


def _from_activity(headers: Sequence[Dataset], place: str, *, units_given: bool) -> EmissionScale:
    """Bq/ml: divide by the dose per gram."""
    if not units_given:
        note = f"{place}: PET units are missing in the header; the values are kept."
        return EmissionScale(1.0, "a.u.", [note])
    try:
        weight_g = 1000.0 * _positive(headers[0], "PatientWeight")
        dose = _dose_at_reference(headers)
    except ValueError as error:
        note = f"{place}: no SUV, because {error}; the values stay in Bq/ml."
        return EmissionScale(1.0, "Bq/ml", [note])
    return EmissionScale(weight_g / dose, "SUV", [])


def _dose_at_reference(headers: Sequence[Dataset]) -> float:
    """Injected activity in Bq at the time that the images are decay-corrected to."""
    first = headers[0]
    sequence = first.get("RadiopharmaceuticalInformationSequence") or []
    if not sequence:
        raise ValueError("the header has no radiopharmaceutical information")
    dose = _positive(sequence[0], "RadionuclideTotalDose")
    if dose < 1e4:  # some exports write MBq against the standard: nobody injects 10 kBq
        raise ValueError(f"the injected dose of {dose:g} Bq is not believable")
    correction = str(first.get("DecayCorrection", "")).strip().upper()
    if correction == "ADMIN":
        return dose
    if correction != "START":
        raise ValueError(f"decay correction is {correction or 'missing'}, not START or ADMIN")
    half_life = _positive(sequence[0], "RadionuclideHalfLife")
    start = _scan_start(headers)
    waited = (start - _injection(sequence[0], start)).total_seconds()
    if not 0 <= waited <= 10 * half_life:
        raise ValueError(f"the scan starts {waited:.0f} s after the injection")
    return float(dose * 2.0 ** (-waited / half_life))


def _scan_start(headers: Sequence[Dataset]) -> datetime:
    """Start of the acquisition: the series' time, unless it is later than the first slice's."""
    times = [_date_time(h, "Acquisition") for h in headers]
    acquired = min((t for t in times if t is not None), default=None)
    series = _date_time(headers[0], "Series")
    starts = [t for t in (series, acquired) if t is not None]
    if not starts:
        raise ValueError("the header has no series or acquisition time")
    return min(starts)


def _injection(info: Dataset, start: datetime) -> datetime:
    """Time of the injection; a bare time of day is taken as the last one before the scan."""
    full = _parse(str(info.get("RadiopharmaceuticalStartDateTime", "") or ""))
    if full is not None:
        return full
    time = _parse("20000101" + str(info.get("RadiopharmaceuticalStartTime", "") or ""))
    if time is None:
        raise ValueError("the header has no injection time")
    injected = datetime.combine(start.date(), time.time())
    return injected if injected <= start else injected - timedelta(days=1)


def _date_time(header: Dataset, name: str) -> datetime | None:
    """``<name>DateTime``, else ``<name>Date`` and ``<name>Time``."""
    full = _parse(str(header.get(f"{name}DateTime", "") or ""))
    date, time = header.get(f"{name}Date"), header.get(f"{name}Time")
    return full or (_parse(f"{date}{time}") if date and time else None)


def _parse(text: str) -> datetime | None:
    """A DICOM DT of at least hours; zones are dropped, for all times of a header share one."""
    digits = text.split("+")[0].split("-")[0].split(".")[0].strip()
    fraction = text.split(".")[1][:6] if "." in text else ""
    micro = int(fraction.ljust(6, "0")) if fraction.isdigit() else 0
    if len(digits) not in (10, 12, 14):  # minutes and seconds may be left out
        return None
    try:
        return datetime.strptime(digits.ljust(14, "0"), "%Y%m%d%H%M%S").replace(microsecond=micro)
    except ValueError:
        return None


def _positive(header: Dataset, name: str) -> float:
    """A positive number of the header, or a ValueError that says what is missing."""
    value = header.get(name)
    try:
        number = float(value) if value is not None else 0.0
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} is missing in the header")
    return number


def _private_number(header: Dataset, tag: tuple[int, int]) -> float:
    """A positive private number, or 0."""
    element = header.get(tag)
    try:
        number = float(element.value) if element is not None else 0.0
    except (TypeError, ValueError):
        return 0.0
    return number if 0 < number < float("inf") else 0.0


__all__ = ["EmissionScale", "emission_scale"]
