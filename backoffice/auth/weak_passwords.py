"""Tells passwords that are easy to guess: common ones, and those that follow from the account. Performs no I/O.

The estimate is zxcvbn's (Wheeler, USENIX Security 2016): the number of guesses of an attacker who knows lists of common
passwords, names and words, and usual changes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from zxcvbn import scoring
from zxcvbn.matching import RANKED_DICTIONARIES, build_ranked_dict, omnimatch

# The limit of an account admits 9,600 guesses a day (`limits.attempts.LOGIN_ACCOUNT`).
GUESSES_MIN: Final = 10_000
# The cost grows with more than the square of the length, up to 0.8 s for 72 characters. A beginning that is hard to
# guess is enough.
CHARACTERS_MAX: Final = 24

WEAK_DETAIL: Final = "is too easy to guess; choose a longer or less common password"


def is_weak(password: str, known: Sequence[str] = ()) -> bool:
    """Whether a password is found within `GUESSES_MIN` guesses. `known` is text that attackers have: address, name.

    Takes up to 0.1 s of CPU time. Unlike `zxcvbn.zxcvbn`, it may run in several threads at once.
    """
    beginning = password[:CHARACTERS_MAX]
    own = [part for text in known for part in (text.lower(), text.lower().partition("@")[0]) if part]
    matches = omnimatch(beginning, {**RANKED_DICTIONARIES, "user_inputs": build_ranked_dict(own)})
    return bool(scoring.most_guessable_match_sequence(beginning, matches)["guesses"] < GUESSES_MIN)
