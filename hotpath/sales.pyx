"""A sale for the hot path. Performs no I/O. The edge builds it from plain values and replaces it when it is stale."""

from libc.string cimport memcmp, memcpy, memset

from hotpath.ids cimport ID_BYTES, put_short, put_uuid


cdef class LaneNames:
    """Names of one lane's keys for one sale."""

    def __init__(
        self, *, int lane, str state_key, str stream_key, str beat_key, bytes user_key_prefix, bytes order_key_prefix
    ):
        assert 0 <= lane < 4096
        self.lane = lane
        self.state_key = state_key.encode("ascii")
        self.stream_key = stream_key.encode("ascii")
        self.beat_key = beat_key.encode("ascii")
        self.user_key_head = _key_head(user_key_prefix)
        self.order_key_head = _key_head(order_key_prefix)


cdef bytes _key_head(bytes prefix):
    return b"$%d\r\n%b" % (len(prefix) + ID_BYTES, prefix)


cdef class Tally:
    """Counts of answers for one sale."""

    def __cinit__(self):
        memset(self.counts, 0, sizeof(self.counts))

    def take(self):
        """Verdict -> count since the last call."""
        cdef int verdict
        taken = {verdict: self.counts[verdict] for verdict in range(VERDICTS_MAX) if self.counts[verdict]}
        memset(self.counts, 0, sizeof(self.counts))
        return taken

    @property
    def total(self):
        """Sum of the counts since the last call of `take`."""
        cdef int verdict
        cdef uint64_t total = 0
        for verdict in range(<int>VERDICTS_MAX):
            total += self.counts[verdict]
        return total


cdef inline unsigned int sku_hash(const char* sku, int length) noexcept nogil:
    cdef unsigned int value = 0x811C9DC5
    cdef int i
    for i in range(length):
        value = (value ^ <unsigned char>sku[i]) * 0x01000193
    return value ^ (value >> 15)


cdef class SaleView:
    """One version of a published sale."""

    def __init__(
        self, *, bytes sale_id, long epoch, long version, int64_t hold_ms, str currency, lanes, items, Tally tally=None
    ):
        cdef unsigned int slot
        cdef char short_text[22]
        assert len(sale_id) == 16 and len(currency) == 3 and lanes and 0 < len(items) <= SKUS_MAX
        memcpy(self.id, <const char*>sale_id, 16)
        put_uuid(self.id_text, self.id)
        put_short(short_text, self.id)
        raw = currency.encode("ascii")
        memcpy(self.currency, <const char*>raw, 3)
        self.epoch = epoch
        self.version = version
        self.hold_ms = hold_ms
        self.tally = Tally() if tally is None else tally
        self.lanes = tuple(lanes)
        self.lane_count = len(self.lanes)
        assert all(isinstance(lane, LaneNames) for lane in self.lanes)
        self.item_count = len(items)
        self.skus = []
        self.entry_items = []
        self.json_items = []
        self.json_item_tails = []
        memset(self.sku_slot, 0, sizeof(self.sku_slot))
        memset(self.sold_out, 0, sizeof(self.sold_out))
        for index, (sku, price) in enumerate(items):
            text = sku.encode("ascii")
            self.price[index] = price
            self.skus.append(text)
            self.entry_items.append(price.to_bytes(5, "big") + bytes([len(text)]) + text)
            self.json_items.append(b'{"sku":"%b","quantity":' % text)
            self.json_item_tails.append(b',"unit_price_minor":%d}' % price)
            slot = sku_hash(text, len(text)) % SKU_SLOTS
            while self.sku_slot[slot]:
                slot = (slot + 1) % SKU_SLOTS
            self.sku_slot[slot] = <uint8_t>(index + 1)
        self.script_arguments = b"".join(
            b"$%d\r\n%b\r\n" % (len(part), part)
            for part in (short_text[:22], (<object>epoch).to_bytes(4, "big") + (<object>version).to_bytes(4, "big"))
        )

    cdef int find_sku(self, const char* sku, int length) noexcept:
        """SKU index, -1 when the sale has no such SKU."""
        cdef unsigned int slot = sku_hash(sku, length) % SKU_SLOTS
        cdef bytes known
        while self.sku_slot[slot]:
            known = <bytes>self.skus[self.sku_slot[slot] - 1]
            if len(known) == length and memcmp(<const char*>known, sku, length) == 0:
                return self.sku_slot[slot] - 1
            slot = (slot + 1) % SKU_SLOTS
        return -1

    cdef LaneNames lane_for(self, uint64_t user_hash):
        """The user's home lane (`domain.topology.home_lane`), selected by the bits above those of the bucket."""
        if self.lane_count == 1:
            return <LaneNames>self.lanes[0]
        return <LaneNames>self.lanes[(user_hash >> 10) % <unsigned int>self.lane_count]

    @property
    def sale_id(self):
        """16 bytes."""
        return (<char*>self.id)[:16]

    def is_sold_out(self, int sku_index):
        """Whether the lane last reported the SKU as sold out."""
        assert 0 <= sku_index < self.item_count
        return self.sold_out[sku_index] != 0
