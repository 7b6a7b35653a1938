"""Units of a PET series and, where the header allows it, the factor to SUV (body weight)."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from pydicom import Dataset

from fusion_pipeline.data.dimensions import private_value
from fusion_pipeline.data.nuclides import HALF_LIFE, NEAR, nuclide_of, of_half_life
from fusion_pipeline.data.refusals import refusal

_PHILIPS = ("Philips PET Private Group", 0x7053)
_PHILIPS_SUV, _PHILIPS_ACTIVITY = 0x00, 0x09
# Philips' factor to SUV and the one from dose, weight and times differ by the time that decay is
# counted from, by less than this
_FACTORS_AGREE = 2.0
# What is believed of a person's scan. Above and below lie other units: g, kBq, MBq, minutes.
_WEIGHT_KG = (0.4, 318.0)  # the smallest preterm infants; the heaviest load of PET/CT tables
_BMI_MAX = 60.0  # kg/m2; above it: under 0.2 % of adults (NHANES)
_BMI_RARE = 45.0  # kg/m2; above it: some 3 % of adults in the US, and most weights in pounds
_SIZE_M = (0.3, 2.6)  # newborns; the tallest people
# EANM dosage card: at least 10 to 26 MBq in children. Rb-82 and O-15 water: 400 to 3000 MBq.
_DOSE_MBQ = (5.0, 2000.0)
_SHORT_LIVED_DOSE_MBQ = (50.0, 6000.0)
_SHORT_LIVED_S = 900.0  # half-life; O-15, Rb-82, N-13, K-38, Cu-62
_THERAPY_DOSE_MBQ = (5.0, 30000.0)  # Y-90 microspheres
# Bq/g at the reference time: 37 MBq of Zr-89 after a week are 90 in 100 kg, 2.2 GBq of Rb-82 44000
_DOSE_PER_GRAM = (10.0, 1e5)
# A dose spread evenly over the body is 1 everywhere, and something takes up more; kBq/ml or SUV
# that are called Bq/ml end below.
_BRIGHTEST_SUV = 0.1
_HALF_LIVES = 5.0  # between injection and scan; 3 % of the activity is left then
_ONE_DAY_S = 36000.0  # half-life beyond which people are scanned on a later day than injected
# what all slices have to say alike
_OF_SLICE = ("PatientWeight", "DecayCorrection", "CorrectedImage")
_OF_INJECTION = ("RadionuclideTotalDose", "RadionuclideHalfLife")
_SESSION = timedelta(hours=12)  # a series' start lies no further before its first slice
# YYYYMMDDHH[MM[SS]], fraction of a second, offset from UTC
_DATE_TIME = re.compile(r"(\d{10}|\d{12}|\d{14})(?:\.(\d{1,6})\d*)?\s*([+-]\d{4})?")


class EmissionScale(NamedTuple):
    """The factor to the rescaled values of a PET series, and their units with and without it."""

    factor: float
    units: str
    warnings: list[str]
    stored: str = "a.u."


def unbelievable_suv(brightest: float) -> str:
    """Why values cannot be SUV of a scan; empty where they can.

    Args:
        brightest: of all values.
    """
    if brightest >= _BRIGHTEST_SUV:
        return ""
    return f"no value exceeds {brightest:.3g}; the header's Units or rescale may be wrong"


def emission_scale(headers: Sequence[Dataset], place: str) -> EmissionScale:
    """Find the factor from a PET series' rescaled values to SUV.

    Formula: ``SUV = Bq/ml · weight [g] / dose at the reference time [Bq]``, where the dose decays
    from the injection to the series' start if the header's Decay Correction is START, and not at
    all if it is ADMIN. A header that cannot be true (weight in g, dose in kBq, another nuclide's
    half-life, no attenuation correction) gives no SUV but a sentence.

    Args:
        headers: pydicom data sets of the slices (or of the one multi-frame file).
        place: name of the image in warnings.

    Raises:
        InputError: slices of two units.

    References:
        QIBA, FDG-PET/CT Profile, vendor-neutral pseudo-code for SUV calculation.
    """
    first = headers[0]
    units = str(first.get("Units", "")).strip().upper()
    if len({str(header.get("Units", "")).strip().upper() for header in headers}) > 1:
        came = "slices of several (Units)"
        raise refusal(place, "values of one unit", came, "export the series again")
    lacks = _not_corrected(first)
    if lacks and units in ("GML", "CNTS") and "CorrectedImage" in first:
        note = f"{place}: no SUV, because {lacks}; the values are kept."
        return EmissionScale(1.0, "counts" if units == "CNTS" else "a.u.", [note])
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
    suv, activity = (_philips(headers[0], element) for element in (_PHILIPS_SUV, _PHILIPS_ACTIVITY))
    if activity:
        factor, units, notes, _ = _from_activity(headers, place, units_given=True)
        computed = factor * activity
        if not suv:
            return EmissionScale(computed, units, notes, "counts")
        if units == "SUV" and not 1 / _FACTORS_AGREE <= suv / computed <= _FACTORS_AGREE:
            note = (
                f"{place}: no SUV, because the header's factor from counts to SUV is {suv:g} and "
                f"its dose, weight and times give {computed:.3g}; the values stay in counts."
            )
            return EmissionScale(1.0, "counts", [note])
    if suv:
        return EmissionScale(suv, "SUV", [], "counts")
    note = f"{place}: PET units are counts and no factor to SUV is in the header; values are kept."
    return EmissionScale(1.0, "counts", [note])


def _from_activity(headers: Sequence[Dataset], place: str, *, units_given: bool) -> EmissionScale:
    """Bq/ml: divide by the dose per gram."""
    if not units_given:
        note = f"{place}: PET units are missing in the header; the values are kept."
        return EmissionScale(1.0, "a.u.", [note])
    try:
        if lacks := _not_corrected(headers[0]):
            raise ValueError(lacks)
        _check_one_injection(headers)
        weight_kg, notes = _weight(headers[0], place)
        weight_g = 1000.0 * weight_kg
        dose = _dose_at_reference(headers)
        _check_range("activity per gram at the scan", dose / weight_g, _DOSE_PER_GRAM, "Bq/g")
    except ValueError as error:
        note = f"{place}: no SUV, because {error}; the values stay in Bq/ml."
        return EmissionScale(1.0, "Bq/ml", [note])
    return EmissionScale(weight_g / dose, "SUV", notes, "Bq/ml")


def _check_one_injection(headers: Sequence[Dataset]) -> None:
    """Refuse slices that say different things of what the SUV is computed from."""
    for names in (_OF_SLICE, _OF_INJECTION):
        for name in names:
            said = set()
            for header in headers:
                infos = header.get("RadiopharmaceuticalInformationSequence") or [Dataset()]
                of = header if names is _OF_SLICE else infos[0]
                said.add(_plain(of.get(name)))
            if len(said) > 1:
                raise ValueError(f"the slices give {len(said)} values of {name}")


def _not_corrected(header: Dataset) -> str:
    """What CorrectedImage lacks of attenuation and decay correction; empty if it has both."""
    given = header.get("CorrectedImage") or []
    done = {str(one).strip().upper() for one in ([given] if isinstance(given, str) else given)}
    if not done:
        return "CorrectedImage is missing in the header: attenuation may be uncorrected"
    names = {"ATTN": "attenuation", "DECY": "decay"}
    lacks = [f"{names[code]} ({code})" for code in names if code not in done]
    return f"CorrectedImage has no correction for {' and '.join(lacks)}" if lacks else ""


def _weight(header: Dataset, place: str) -> tuple[float, list[str]]:
    """The patient's weight in kg, if a person can have it; a sentence where few have."""
    weight = _positive(header, "PatientWeight")
    _check_range("weight", weight, _WEIGHT_KG, "kg")
    try:
        size = _positive(header, "PatientSize")
    except ValueError:
        return weight, []
    metres = size / 100 if size > _SIZE_M[1] else size  # some write cm
    index = weight / metres**2
    if not _SIZE_M[0] <= metres <= _SIZE_M[1] or index <= _BMI_RARE:
        return weight, []
    what = f"a weight of {weight:g} kg at a size of {metres:g} m"
    if index > _BMI_MAX:
        raise ValueError(f"{what} is not believable (pounds?)")
    note = f"{place}: {what} is rare; if it is in pounds, the SUV are 2.2 times too high."
    return weight, [note]


def _dose_at_reference(headers: Sequence[Dataset]) -> float:
    """Injected activity in Bq at the time that the images are decay-corrected to."""
    first = headers[0]
    sequence = first.get("RadiopharmaceuticalInformationSequence") or []
    if not sequence:
        raise ValueError("the header has no radiopharmaceutical information")
    if len(sequence) > 1:
        raise ValueError(f"the header has {len(sequence)} injections")
    info = sequence[0]
    nuclide = nuclide_of(info)
    dose = _positive(info, "RadionuclideTotalDose")
    _check_range("injected dose", dose / 1e6, _doses(nuclide), "MBq")
    correction = str(first.get("DecayCorrection", "")).strip().upper()
    if correction == "ADMIN":
        return dose
    if correction != "START":
        raise ValueError(f"decay correction is {correction or 'missing'}, not START or ADMIN")
    half_life = _half_life(info, nuclide)
    waited = _seconds_waited(headers, info)
    if not 0 <= waited <= _HALF_LIVES * half_life:
        raise ValueError(
            f"the scan starts {waited:.0f} s after the injection, and 0 to "
            f"{_HALF_LIVES * half_life:.0f} s ({_HALF_LIVES:g} half-lives) are believable"
        )
    return float(dose * 2.0 ** (-waited / half_life))


def _doses(nuclide: str) -> tuple[float, float]:
    """Believable doses of a nuclide, MBq."""
    if nuclide == "Y-90":
        return _THERAPY_DOSE_MBQ
    if not nuclide:  # it may be any
        return _DOSE_MBQ[0], _SHORT_LIVED_DOSE_MBQ[1]
    return _SHORT_LIVED_DOSE_MBQ if HALF_LIFE[nuclide] < _SHORT_LIVED_S else _DOSE_MBQ


def _half_life(info: Dataset, nuclide: str) -> float:
    """The half-life in s, if it is the nuclide's; of an unnamed nuclide, if it is one's."""
    half_life = _positive(info, "RadionuclideHalfLife")
    if nuclide:
        expected = HALF_LIFE[nuclide]
        if abs(half_life / expected - 1) > NEAR:
            raise ValueError(
                f"a half-life of {half_life:g} s is not that of {nuclide} ({expected:g} s)"
            )
    elif not of_half_life(half_life):
        raise ValueError(f"a half-life of {half_life:g} s is that of no nuclide in PET")
    return half_life


def _check_range(what: str, value: float, limits: tuple[float, float], unit: str) -> None:
    """Refuse a number that lies outside of what is believable."""
    low, high = limits
    if not low <= value <= high:
        raise ValueError(
            f"the {what} of {value:g} {unit} is not believable ({low:g} to {high:g} {unit})"
        )


class _Moment(NamedTuple):
    """A time by the clock of some zone; the zone is None where the header does not say it."""

    clock: datetime
    zone: timedelta | None

    def by(self, zone: timedelta | None) -> datetime:
        """By the clock of another zone; where one of both is not given they are the same."""
        if zone is None or self.zone is None:
            return self.clock
        return self.clock + (zone - self.zone)


def _seconds_waited(headers: Sequence[Dataset], info: Dataset) -> float:
    """From the injection to the start of the scan.

    A bare time of day of the injection is taken as the last one before the scan.
    """
    injected = _parse(str(info.get("RadiopharmaceuticalStartDateTime", "") or ""))
    acquired = [m for m in (_date_time(h, "Acquisition") for h in headers) if m is not None]
    series = _date_time(headers[0], "Series")
    zones = [m.zone for m in (injected, series, *acquired) if m is not None and m.zone is not None]
    zone = _zone(str(headers[0].get("TimezoneOffsetFromUTC", "") or ""))
    zone = zones[0] if zone is None and zones else zone
    start = _scan_start(series, acquired, zone)
    if injected is not None:
        return (start - injected.by(zone)).total_seconds()
    time = _parse("20000101" + str(info.get("RadiopharmaceuticalStartTime", "") or ""))
    if time is None:
        raise ValueError("the header has no injection time")
    half_life = _half_life(info, nuclide_of(info))
    if half_life > _ONE_DAY_S:
        raise ValueError(
            "the header gives the injection's time without its date, which a half-life of "
            f"{half_life / 3600:.0f} h needs"
        )
    last = datetime.combine(start.date(), time.clock.time())
    last = last if last <= start else last - timedelta(days=1)
    return (start - last).total_seconds()


def _scan_start(
    series: _Moment | None, acquired: Sequence[_Moment], zone: timedelta | None
) -> datetime:
    """Start of the acquisition: the series' time, unless it is later than the first slice's."""
    first = min((moment.by(zone) for moment in acquired), default=None)
    begun = None if series is None else series.by(zone)
    if first is not None and begun is not None and first - begun > _SESSION:
        raise ValueError(
            f"the series starts {begun:%Y-%m-%d %H:%M} and its first slice {first:%Y-%m-%d %H:%M}"
        )
    starts = [t for t in (begun, first) if t is not None]
    if not starts:
        raise ValueError("the header has no series or acquisition time")
    return min(starts)


def _date_time(header: Dataset, name: str) -> _Moment | None:
    """``<name>DateTime``, else ``<name>Date`` and ``<name>Time``."""
    full = _parse(str(header.get(f"{name}DateTime", "") or ""))
    date, time = header.get(f"{name}Date"), header.get(f"{name}Time")
    return full or (_parse(f"{date}{time}") if date and time else None)


def _parse(text: str) -> _Moment | None:
    """A DICOM DT of at least hours (minutes and seconds may be left out)."""
    match = _DATE_TIME.fullmatch(text.replace(":", "").strip())  # old files write 10:30:00
    if match is None:
        return None
    digits, fraction, zone = match.groups()
    try:
        clock = datetime.strptime(digits.ljust(14, "0"), "%Y%m%d%H%M%S")
    except ValueError:
        return None
    return _Moment(clock.replace(microsecond=int((fraction or "").ljust(6, "0"))), _zone(zone))


def _zone(text: str | None) -> timedelta | None:
    """An offset from UTC such as ``+0130``."""
    match = re.fullmatch(r"([+-])(\d\d)(\d\d)", (text or "").strip())
    if match is None:
        return None
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return offset if match[1] == "+" else -offset


def _plain(value: object) -> str:
    """A value to compare: ``70`` and ``70.0`` are the same."""
    try:
        return f"{float(str(value)):.6g}"
    except ValueError:
        return str(value or "")


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


def _philips(header: Dataset, element: int) -> float:
    """A positive number of Philips' private group, or 0.

    Anonymizers that take the block's creator away may leave its elements: then the usual block.
    """
    creator, group = _PHILIPS
    value = private_value(header, creator, group, element)
    if (group, 0x10) not in header:
        usual = header.get((group, 0x1000 | element))
        value = None if usual is None else usual.value
    try:
        number = float(0.0 if value is None else value)
    except (TypeError, ValueError):
        return 0.0
    return number if 0 < number < float("inf") else 0.0


__all__ = ["EmissionScale", "emission_scale", "unbelievable_suv"]
