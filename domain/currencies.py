"""The currencies of ISO 4217 that shops can use, with the decimal places of their minor unit. Performs no I/O.

Source: ISO 4217 list one (active codes), without funds codes, metals and codes for testing.
"""

from __future__ import annotations

from typing import Final

_PLACES: Final = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF",
    2: """
        AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC CUP
        CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES
        KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK
        NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB
        TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG
    """,
    3: "BHD IQD JOD KWD LYD OMR TND",
}

MINOR_UNIT_PLACES: Final[dict[str, int]] = {code: places for places, codes in _PLACES.items() for code in codes.split()}
"""Code -> decimal places: 1999 minor units are 19.99 EUR, 1999 JPY, 1.999 KWD."""


def in_major_units(amount_minor: int, currency: str) -> tuple[int, str]:
    """Whole units, and the digits after the decimal mark: (19, "99") for 1999 EUR, (1999, "") for 1999 JPY.

    An unknown code has two places, as most currencies have.
    """
    assert amount_minor >= 0
    places = MINOR_UNIT_PLACES.get(currency, 2)
    whole, rest = divmod(amount_minor, 10**places)
    return whole, f"{rest:0{places}d}" if places else ""
