"""A sale with all constant bytes of keys, script arguments, order bodies and answers prebuilt."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from hotpath.counters cimport VERDICTS_MAX

cdef enum:
    SKUS_MAX = 200
    SKU_SLOTS = 512  # open addressing, at most 40% full

cdef class LaneNames:
    cdef readonly int lane
    cdef bytes state_key
    cdef bytes stream_key
    cdef bytes beat_key
    cdef bytes user_key_head  # RESP: `$<length of the whole key>\r\n<prefix>`; the 16 bytes of the id follow
    cdef bytes order_key_head

cdef class Tally:
    cdef uint64_t counts[VERDICTS_MAX]

cdef class SaleView:
    cdef uint8_t id[16]
    cdef char id_text[36]
    cdef char currency[3]
    cdef readonly long epoch
    cdef readonly long version
    cdef int64_t hold_ms
    cdef readonly Tally tally
    cdef tuple lanes
    cdef int lane_count
    cdef int item_count
    cdef uint8_t sku_slot[SKU_SLOTS]  # index + 1, 0: empty
    cdef list skus  # bytes
    cdef int64_t price[SKUS_MAX]
    cdef list entry_items  # bytes per SKU: 5 price, 1 length, SKU
    cdef list json_items  # bytes per SKU: `{"sku":"...","quantity":`
    cdef list json_item_tails  # bytes per SKU: `,"unit_price_minor":1999}`
    cdef bytes script_arguments  # RESP: short id, edition (epoch and version)
    cdef uint8_t sold_out[SKUS_MAX]
    # Valid while one batch is built: the number of the batch, and the index of the sale in it.
    cdef uint64_t batch_serial
    cdef int batch_place

    cdef int find_sku(self, const char* sku, int length) noexcept
    cdef LaneNames lane_for(self, uint64_t user_hash)
