"""Order ids, short ids, user hash and timestamps, equal to `domain.ids` and `domain.topology`. Performs no I/O."""

import os

from libc.string cimport memcmp, memcpy

cdef const char* BASE64URL = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
cdef const char* HEX = b"0123456789abcdef"
cdef Py_ssize_t POOL_BYTES = 4096


cdef uint64_t fnv1a_folded(const uint8_t* sixteen) noexcept nogil:
    """64-bit FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/), then xor-folded so that low bits mix."""
    cdef uint64_t value = 0xCBF29CE484222325ULL
    cdef int i
    for i in range(ID_BYTES):
        value = (value ^ sixteen[i]) * 0x100000001B3ULL
    return value ^ (value >> 29)


cdef void put_short(char* target, const uint8_t* sixteen) noexcept nogil:
    """22 characters; the last one holds the remaining two bits."""
    cdef int i
    cdef unsigned int three
    for i in range(5):
        three = (sixteen[3 * i] << 16) | (sixteen[3 * i + 1] << 8) | sixteen[3 * i + 2]
        target[4 * i] = BASE64URL[three >> 18]
        target[4 * i + 1] = BASE64URL[(three >> 12) & 63]
        target[4 * i + 2] = BASE64URL[(three >> 6) & 63]
        target[4 * i + 3] = BASE64URL[three & 63]
    target[20] = BASE64URL[sixteen[15] >> 2]
    target[21] = BASE64URL[(sixteen[15] & 3) << 4]


cdef void put_uuid(char* target, const uint8_t* sixteen) noexcept nogil:
    """36 characters: 8-4-4-4-12 digits in lower case."""
    cdef int i, at = 0
    for i in range(ID_BYTES):
        if i == 4 or i == 6 or i == 8 or i == 10:
            target[at] = c"-"
            at += 1
        target[at] = HEX[sixteen[i] >> 4]
        target[at + 1] = HEX[sixteen[i] & 15]
        at += 2


cdef inline int hex_value(char c) noexcept nogil:
    if c"0" <= c <= c"9":
        return c - c"0"
    if c"a" <= c <= c"f":
        return c - c"a" + 10
    if c"A" <= c <= c"F":
        return c - c"A" + 10
    return -1


cdef bint take_uuid(const char* text, Py_ssize_t length, uint8_t* sixteen) noexcept nogil:
    """Whether `text` is a canonical id, in either case."""
    cdef int i, at = 0, high, low
    if length != UUID_CHARS:
        return False
    for i in range(ID_BYTES):
        if i == 4 or i == 6 or i == 8 or i == 10:
            if text[at] != c"-":
                return False
            at += 1
        high = hex_value(text[at])
        low = hex_value(text[at + 1])
        if high < 0 or low < 0:
            return False
        sixteen[i] = <uint8_t>(high << 4 | low)
        at += 2
    return True


cdef int pack_key_in_place(char* key, int length) noexcept nogil:
    """`domain.orders.pack_key`: shortens a UUID in its canonical spelling to 16 bytes; returns the new length."""
    cdef uint8_t sixteen[ID_BYTES]
    cdef char text[UUID_CHARS]
    if length != UUID_CHARS or not take_uuid(key, length, sixteen) or sixteen[8] >> 6 != 0b10:
        return length
    put_uuid(text, sixteen)
    if memcmp(text, key, UUID_CHARS) != 0:
        return length  # capital letters make another key
    memcpy(key, sixteen, ID_BYTES)
    return ID_BYTES


cdef inline void put_digits(char* target, int64_t value, int width) noexcept nogil:
    cdef int i
    for i in range(width - 1, -1, -1):
        target[i] = <char>(c"0" + value % 10)
        value //= 10


cdef int put_decimal(char* target, uint64_t value) noexcept nogil:
    """Write digits without leading zeros; returns their number."""
    cdef char reverse[20]
    cdef int count = 0, i
    while True:
        reverse[count] = <char>(c"0" + value % 10)
        count += 1
        value //= 10
        if value == 0:
            break
    for i in range(count):
        target[i] = reverse[count - 1 - i]
    return count


cdef void put_rfc3339_ms(char* target, int64_t unix_ms) noexcept nogil:
    """24 characters, UTC. Days to civil date: http://howardhinnant.github.io/date_algorithms.html."""
    cdef int64_t seconds = unix_ms // 1000
    cdef int64_t days = seconds // 86400 + 719468
    cdef int64_t rest = seconds % 86400
    cdef int64_t era = days // 146097
    cdef int64_t day_of_era = days - era * 146097
    cdef int64_t year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    cdef int64_t day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    cdef int64_t month = (5 * day_of_year + 2) // 153
    cdef int64_t day = day_of_year - (153 * month + 2) // 5 + 1
    cdef int64_t year = year_of_era + era * 400
    month = month + 3 if month < 10 else month - 9
    if month <= 2:
        year += 1
    memcpy(target, b"0000-00-00T00:00:00.000Z", TIMESTAMP_CHARS)
    put_digits(target, year, 4)
    put_digits(target + 5, month, 2)
    put_digits(target + 8, day, 2)
    put_digits(target + 11, rest // 3600, 2)
    put_digits(target + 14, rest // 60 % 60, 2)
    put_digits(target + 17, rest % 60, 2)
    put_digits(target + 20, unix_ms % 1000, 3)


cdef class OrderIds:
    """Makes UUIDv8 order ids: 48 bits ms | version 8 | 12 bits lane | variant | 10 bits bucket | 52 bits random."""

    def __cinit__(self):
        self.pool = b""
        self.used = 0

    cdef int put(self, uint8_t* sixteen, int64_t unix_ms, int lane, int bucket) except -1:
        cdef const uint8_t* random
        cdef int i
        if self.used + 8 > len(self.pool):
            self.pool = os.urandom(POOL_BYTES)
            self.used = 0
        random = <const uint8_t*><const char*>self.pool + self.used
        self.used += 8
        for i in range(6):
            sixteen[i] = <uint8_t>(unix_ms >> (40 - 8 * i))
        sixteen[6] = <uint8_t>(0x80 | (lane >> 8))
        sixteen[7] = <uint8_t>lane
        sixteen[8] = <uint8_t>(0x80 | (bucket >> 4))
        sixteen[9] = <uint8_t>((bucket & 15) << 4 | (random[0] & 15))
        memcpy(sixteen + 10, random + 1, 6)
        return 0

    def make(self, *, int64_t unix_ms, int lane, int bucket):
        """The 16 bytes of a new id."""
        cdef uint8_t sixteen[16]
        assert 0 <= lane < 4096 and 0 <= bucket < 1024
        self.put(sixteen, unix_ms, lane, bucket)
        return (<char*>sixteen)[:16]


def user_hash(bytes user_id not None):
    """64-bit FNV-1a of the 16 bytes, folded."""
    assert len(user_id) == ID_BYTES
    return fnv1a_folded(<const uint8_t*><const char*>user_id)


def short_id(bytes value not None):
    """22 characters of unpadded base64url."""
    cdef char text[22]
    assert len(value) == ID_BYTES
    put_short(text, <const uint8_t*><const char*>value)
    return text[:22].decode("ascii")


def uuid_text(bytes value not None):
    """Canonical text."""
    cdef char text[36]
    assert len(value) == ID_BYTES
    put_uuid(text, <const uint8_t*><const char*>value)
    return text[:36].decode("ascii")


def parse_uuid(str text not None):
    """16 bytes of a canonical id; None for any other text."""
    cdef uint8_t sixteen[16]
    if not text.isascii():
        return None
    raw = text.encode("ascii")
    if not take_uuid(raw, len(raw), sixteen):
        return None
    return (<char*>sixteen)[:16]


def pack_key(bytes key not None):
    """Pack a key of at most 64 bytes for Redis."""
    cdef char packed[64]
    cdef int length = <int>len(key)
    assert 0 < length <= 64
    memcpy(packed, <const char*>key, length)
    length = pack_key_in_place(packed, length)
    return packed[:length]


def rfc3339_ms(int64_t unix_ms):
    """`2026-01-01T00:00:00.123Z`."""
    cdef char text[24]
    put_rfc3339_ms(text, unix_ms)
    return text[:24].decode("ascii")
