"""Verifies buyers' access tokens: compact JWS (RFC 7515), HS256, keys by `kid`. Performs no I/O and mints nothing.

The algorithm belongs to the key, not to the token: a header with another one is refused. The hot path does not cache
verified tokens: HMAC costs less than a cache with a bound, invalidation and expiry checks.
"""

import json
from hashlib import sha256

from libc.string cimport memchr, memcmp

from hotpath.counters cimport V_TOKEN_ENDED, V_TOKEN_EXPIRED, V_TOKEN_INVALID, V_TOKEN_MISSING
from hotpath.ids cimport fnv1a_folded, take_uuid

TOKEN_MISSING = V_TOKEN_MISSING
TOKEN_INVALID = V_TOKEN_INVALID
TOKEN_EXPIRED = V_TOKEN_EXPIRED
TOKEN_ENDED = V_TOKEN_ENDED

cdef enum:
    TOKEN_LENGTH_MAX = 4096
    HEADERS_MAX = 64
    SIGNATURE_CHARS = 43  # 32 bytes
    SIGNATURE_BYTES = 32
    BLOCK_BYTES = 64  # of SHA-256

cdef signed char SIX_BITS[256]


cdef int _fill_six_bits() noexcept:
    cdef int i
    cdef const char* alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for i in range(256):
        SIX_BITS[i] = -1
    for i in range(64):
        SIX_BITS[<unsigned char>alphabet[i]] = <signed char>i
    return 0


_fill_six_bits()


cdef Py_ssize_t decode_base64url(const char* text, Py_ssize_t length, unsigned char* target) noexcept nogil:
    """Decode to `target`; returns the length, or -1 unless it is canonical unpadded base64url (RFC 4648, section 5)."""
    cdef Py_ssize_t at = 0, out = 0
    cdef int a, b, c, d
    while length - at >= 4:
        a = SIX_BITS[<unsigned char>text[at]]
        b = SIX_BITS[<unsigned char>text[at + 1]]
        c = SIX_BITS[<unsigned char>text[at + 2]]
        d = SIX_BITS[<unsigned char>text[at + 3]]
        if (a | b | c | d) < 0:
            return -1
        target[out] = <unsigned char>(a << 2 | b >> 4)
        target[out + 1] = <unsigned char>(b << 4 | c >> 2)
        target[out + 2] = <unsigned char>(c << 6 | d)
        at += 4
        out += 3
    if length - at == 1:
        return -1
    if length - at >= 2:
        a = SIX_BITS[<unsigned char>text[at]]
        b = SIX_BITS[<unsigned char>text[at + 1]]
        c = SIX_BITS[<unsigned char>text[at + 2]] if length - at == 3 else 0
        if (a | b | c) < 0:
            return -1
        target[out] = <unsigned char>(a << 2 | b >> 4)
        out += 1
        if length - at == 3:
            target[out] = <unsigned char>(b << 4 | c >> 2)
            out += 1
            return out if c & 3 == 0 else -1
        return out if b & 15 == 0 else -1
    return out


cdef class Claims:
    """The claims of a valid token."""

    @property
    def user_id(self):
        """16 bytes of `sub`."""
        return (<char*>self.user)[:16]

    @property
    def expires_at_s(self):
        """`exp`."""
        return self.expires_at

    @property
    def issued_at_s(self):
        """`iat`."""
        return self.issued_at

    @property
    def generation_of_sessions(self):
        """`gen`; -1 without it."""
        return self.generation


cdef class HmacKey:
    """HMAC-SHA-256 (RFC 2104) with one key, whose two blocks are hashed once and not for each token."""

    def __init__(self, bytes key not None):
        if len(key) > BLOCK_BYTES:
            key = sha256(key).digest()
        block = key.ljust(BLOCK_BYTES, b"\0")
        self.inner = sha256(bytes(byte ^ 0x36 for byte in block))
        self.outer = sha256(bytes(byte ^ 0x5C for byte in block))

    cdef bytes digest(self, bytes message):
        inner = self.inner.copy()
        inner.update(message)
        outer = self.outer.copy()
        outer.update(inner.digest())
        return outer.digest()


cdef class KeyRing:
    """HS256 keys by `kid`."""

    def __init__(
        self, keys, *, str issuer, str audience="edge", str role="buyer", int leeway_s=60, dict ends=None
    ):
        self.replace(keys)
        self.ends = {} if ends is None else ends
        self.issuer = issuer
        self.audience = audience
        self.role = role
        self.issuer_ascii = issuer.encode("ascii")
        self.audience_ascii = audience.encode("ascii")
        self.role_ascii = role.encode("ascii")
        self.leeway_s = leeway_s

    def replace(self, keys):
        """Verify with these keys from now on."""
        assert all(len(key) >= 32 for key in keys.values()), "HS256 needs keys of at least 32 bytes (RFC 7518)"
        self.keys = {kid: HmacKey(key) for kid, key in keys.items()}
        self.headers = {}  # it may hold keys that are removed

    def verify(self, bytes token not None, int64_t now_s):
        """Claims, TOKEN_INVALID, TOKEN_EXPIRED or TOKEN_ENDED."""
        cdef Claims claims = Claims.__new__(Claims)
        cdef int fault = self.check(token, len(token), now_s, claims)
        return claims if fault == 0 else fault

    def authorize(self, str authorization, int64_t now_s):
        """Like `verify`, from an `Authorization` header; TOKEN_MISSING without a Bearer token."""
        if authorization is None or authorization[:7].lower() != "bearer " or not authorization.isascii():
            return TOKEN_MISSING
        return self.verify(authorization[7:].strip(" ").encode("ascii"), now_s)

    cdef int check(self, const char* token, Py_ssize_t length, int64_t now_s, Claims claims) except -1:
        cdef unsigned char signature[SIGNATURE_BYTES + 1]
        cdef unsigned char payload[TOKEN_LENGTH_MAX]
        cdef const char* first
        cdef const char* second
        cdef const unsigned char* wanted
        cdef unsigned char difference = 0
        cdef Py_ssize_t payload_length
        cdef int64_t not_before = 0
        cdef int i
        cdef HmacKey key
        if length > TOKEN_LENGTH_MAX:
            return V_TOKEN_INVALID
        first = <const char*>memchr(token, c".", length)
        if first == NULL:
            return V_TOKEN_INVALID
        second = <const char*>memchr(first + 1, c".", length - (first + 1 - token))
        if second == NULL or token + length - (second + 1) != SIGNATURE_CHARS:
            return V_TOKEN_INVALID
        header = token[: first - token]
        key = <HmacKey>self.headers.get(header)
        known = key is not None
        if not known:
            key = self.key_for(header)
            if key is None:
                return V_TOKEN_INVALID
        if decode_base64url(second + 1, SIGNATURE_CHARS, signature) != SIGNATURE_BYTES:
            return V_TOKEN_INVALID
        digest = key.digest(token[: second - token])
        wanted = <const unsigned char*><const char*>digest
        for i in range(SIGNATURE_BYTES):  # always compares all bytes, in constant time
            difference |= wanted[i] ^ signature[i]
        if difference != 0:
            return V_TOKEN_INVALID
        if not known:
            # Only headers with a valid signature enter, so attackers cannot fill the table.
            if len(self.headers) >= HEADERS_MAX:
                self.headers.clear()
            self.headers[header] = key
        payload_length = decode_base64url(first + 1, second - first - 1, payload)
        if payload_length < 0:
            return V_TOKEN_INVALID
        if not read_plain_claims(<const char*>payload, payload_length, self, claims, &not_before):
            if not self.read_claims((<char*>payload)[:payload_length], claims, &not_before):
                return V_TOKEN_INVALID
        if claims.issued_at > now_s + self.leeway_s or not_before > now_s + self.leeway_s:
            return V_TOKEN_INVALID
        if claims.expires_at <= now_s:
            return V_TOKEN_EXPIRED
        if self.ends and self.is_ended(claims):
            return V_TOKEN_ENDED
        claims.user_hash = fnv1a_folded(claims.user)
        return 0

    cdef bint is_ended(self, Claims claims) except -1:
        """Whether the sessions of the user, or of all users, ended after the token was issued.

        `runtime.tokens.session_ends.SessionEnds.is_ended` is the same rule and says why.
        """
        own = self.ends.get((<char*>claims.user)[:16])
        if own is not None:
            if claims.generation >= 0:
                if claims.generation < <int64_t>own:
                    return True
            elif claims.issued_at - self.leeway_s <= <int64_t>own // 1000:
                return True
        everybody = self.ends.get(b"")
        return everybody is not None and claims.issued_at - self.leeway_s <= <int64_t>everybody // 1000

    cdef HmacKey key_for(self, bytes header):
        """The key named in the header; None when there is none or the header does not fit it."""
        cdef unsigned char raw[TOKEN_LENGTH_MAX]
        cdef Py_ssize_t length = decode_base64url(header, len(header), raw)
        if length < 0:
            return None
        try:
            members = json.loads((<char*>raw)[:length])
        except (ValueError, RecursionError):
            return None
        if type(members) is not dict or members.get("alg") != "HS256" or "crit" in members:
            return None
        kid = members.get("kid")
        return self.keys.get(kid) if type(kid) is str else None

    cdef int read_claims(self, bytes payload, Claims claims, int64_t* not_before) except -1:
        """Read claims in any spelling. Returns whether they are complete and meant for this service."""
        try:
            members = json.loads(payload)
        except (ValueError, RecursionError):
            return 0
        if type(members) is not dict:
            return 0
        sub = members.get("sub")
        if type(sub) is not str or not (<str>sub).isascii():
            return 0
        raw = (<str>sub).encode("ascii")
        if not take_uuid(raw, len(raw), claims.user):
            return 0
        if members.get("iss") != self.issuer:
            return 0
        audience = members.get("aud")
        if audience != self.audience and not (_is_list_of_str(audience) and self.audience in audience):
            return 0
        roles = members.get("roles")
        if not (_is_list_of_str(roles) and self.role in roles):
            return 0
        for name in ("iat", "exp", "nbf"):
            value = members.get(name, 0 if name == "nbf" else None)
            if type(value) is not int or not -(1 << 62) < value < 1 << 62:
                return 0
        generation = members.get("gen", -1)
        if type(generation) is not int or not -1 <= generation < 1 << 62 or (generation < 0 and "gen" in members):
            return 0
        claims.generation = generation
        claims.issued_at = members["iat"]
        claims.expires_at = members["exp"]
        not_before[0] = members.get("nbf", 0)
        return 1


cdef bint _is_list_of_str(value):
    return type(value) is list and all(type(member) is str for member in value)


# ---- the usual spelling of claims: one pass, no Python object ------------------------------------------------------

cdef inline bint same(const char* text, Py_ssize_t length, bytes other) noexcept:
    return length == len(other) and memcmp(text, <const char*>other, length) == 0


cdef const char* string_end(const char* at, const char* end) noexcept nogil:
    """The closing quote of a string of plain ASCII; NULL for any other string."""
    while at < end and 0x20 <= at[0] < 0x7F and at[0] != c'"' and at[0] != c"\\":
        at += 1
    return at if at < end and at[0] == c'"' else NULL


cdef bint read_plain_claims(
    const char* at, Py_ssize_t length, KeyRing ring, Claims claims, int64_t* not_before
) noexcept:
    """`{"sub":"...","iss":"...","aud":"...","roles":["..."],"iat":n,"exp":n}` in any order, no spaces, no escapes.

    Also with `"gen":n` and `"auth_time":n`; this service does not use the latter.
    False for any other text, faulty claims included: the general reader decides on those.
    """
    cdef const char* end = at + length
    cdef const char* name
    cdef const char* value
    cdef const char* close
    cdef Py_ssize_t name_length
    cdef int64_t number
    cdef int digits
    cdef int seen = 0  # bits: 1 sub, 2 iss, 4 aud, 8 roles, 16 iat, 32 exp; optional: 64 gen, 128 auth_time
    cdef int bit
    if at == end or at[0] != c"{":
        return False
    claims.generation = -1
    at += 1
    while True:
        if end - at < 2 or at[0] != c'"':
            return False
        name = at + 1
        close = string_end(name, end)
        if close == NULL or end - close < 3 or close[1] != c":":
            return False
        name_length = close - name
        at = close + 2
        if c"0" <= at[0] <= c"9":
            number = 0
            digits = 0
            if at[0] == c"0" and end - at > 1 and c"0" <= at[1] <= c"9":
                return False  # not JSON
            while at < end and c"0" <= at[0] <= c"9" and digits < 16:
                number = 10 * number + (at[0] - c"0")
                digits += 1
                at += 1
            if same(name, name_length, b"iat"):
                bit = 16
                claims.issued_at = number
            elif same(name, name_length, b"exp"):
                bit = 32
                claims.expires_at = number
            elif same(name, name_length, b"gen"):
                bit = 64
                claims.generation = number
            elif same(name, name_length, b"auth_time"):
                bit = 128
            else:
                return False
        elif at[0] == c'"':
            value = at + 1
            close = string_end(value, end)
            if close == NULL:
                return False
            at = close + 1
            if same(name, name_length, b"sub"):
                bit = 1
                if not take_uuid(value, close - value, claims.user):
                    return False
            elif same(name, name_length, b"iss"):
                bit = 2
                if not same(value, close - value, ring.issuer_ascii):
                    return False
            elif same(name, name_length, b"aud"):
                bit = 4
                if not same(value, close - value, ring.audience_ascii):
                    return False
            else:
                return False
        elif at[0] == c"[" and same(name, name_length, b"roles"):
            bit = 8
            if at[1] != c'"':
                return False
            value = at + 2
            close = string_end(value, end)
            if close == NULL or not same(value, close - value, ring.role_ascii):
                return False
            at = close + 1
            if at == end or at[0] != c"]":
                return False
            at += 1
        else:
            return False
        if seen & bit:
            return False
        seen |= bit
        if at == end:
            return False
        if at[0] == c"}":
            return at + 1 == end and seen & 63 == 63
        if at[0] != c",":
            return False
        at += 1
