"""The public time-zone tables: places, the countries that they lie in, their part of the world and their clocks.

The tables are those of IANA, in the public domain, as the package `tzdata` carries them; the system's own are not read.
What they say of a disputed place is theirs, and no view of ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import metadata, resources
from zoneinfo import ZoneInfo

_GREENWICH_NOON = datetime(2020, 1, 15, 12)
"""Local time anywhere; Greenwich is then at most half a day away, which no zone changes in January."""


@dataclass(frozen=True)
class Place:
    """A place that a time zone is named after.

    Attributes:
        name: "Mexico City"; country: its name in English, "Mexico".
        clock: what clocks there show at noon in Greenwich on 15 January 2020, "06:00".
    """

    name: str
    country: str
    clock: str


def zone_places(regions: Mapping[str, str]) -> tuple[tuple[Place, ...], dict[str, str]]:
    """The places of `zone.tab`, and the region that each country's zones are most often named under.

    Left out is what a name alone would not tell: places that share theirs with another or with a country, countries that
    the table tells apart in brackets, and zones under a region without a name.

    Args:
        regions: the first part of a zone's name ("Indian") → what it is to be called, "" to leave it out.

    Returns:
        (places in the order of the table, country → region).
    """
    countries = _countries()
    found: list[Place] = []
    under: dict[str, Counter[str]] = {}
    for code, _, zone, *_ in _rows("zone.tab"):
        region = regions.get(zone.split("/")[0], "")
        if region and code in countries:
            found.append(Place(zone.split("/")[-1].replace("_", " "), countries[code], _clock(zone)))
            under.setdefault(countries[code], Counter())[region] += 1
    times = Counter(place.name for place in found)
    taken = set(countries.values())
    places = tuple(place for place in found if times[place.name] == 1 and place.name not in taken)
    return places, {country: counts.most_common(1)[0][0] for country, counts in under.items()}


def tables_version() -> str:
    """The release of the tables, "2025.2"."""
    return metadata.version("tzdata")


def _countries() -> dict[str, str]:
    """Code → name of `iso3166.tab`, without what it says in brackets ("Britain (UK)"), which must not be needed."""
    bare = {code: name.split(" (")[0] for code, name in _rows("iso3166.tab")}
    times = Counter(bare.values())
    return {code: name for code, name in bare.items() if times[name] == 1}


def _clock(zone: str) -> str:
    with resources.files("tzdata").joinpath("zoneinfo", *zone.split("/")).open("rb") as file:
        offset = ZoneInfo.from_file(file).utcoffset(_GREENWICH_NOON) or timedelta(0)
    return (_GREENWICH_NOON + offset).strftime("%H:%M")


def _rows(table: str) -> list[list[str]]:
    text = resources.files("tzdata").joinpath("zoneinfo", table).read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
