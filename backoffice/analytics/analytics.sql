-- name: enter
-- Keeps a rebuild from replacing the generation while this transaction reads. Changes nothing. No index.
SELECT pg_advisory_xact_lock_shared(%(lock)s);

-- name: read_progress
-- Changes nothing. Reads the whole table: a row for each topic.
SELECT min(as_of), sum(lag_records)::bigint, count(*) FROM figures.progress;

-- name: read_extent
-- The first and the last minute with figures. Changes nothing. Index: minutes_pkey of each day.
SELECT min(at), max(at) FROM figures.minutes WHERE sale_id = %(sale_id)s;

-- name: read_last_second
-- The last second with figures. Changes nothing. Index: seconds_pkey of the day.
SELECT max(at) FROM figures.seconds WHERE sale_id = %(sale_id)s AND at >= %(since)s;

-- name: read_seconds
-- Changes nothing. Index: seconds_pkey of each day.
SELECT at, currency, orders, units, orders_minor, paid, paid_units, revenue_minor, cancelled, expired, rejected,
    refunds, refunded_minor
FROM figures.seconds
WHERE sale_id = %(sale_id)s AND at >= %(since)s AND at < %(until)s
ORDER BY at, currency;

-- name: read_minutes
-- Changes nothing. Index: minutes_pkey of each day.
SELECT at, currency, orders, units, orders_minor, paid, paid_units, revenue_minor, cancelled, expired, rejected,
    refunds, refunded_minor
FROM figures.minutes
WHERE sale_id = %(sale_id)s AND at >= %(since)s AND at < %(until)s
ORDER BY at, currency;

-- name: read_refusals
-- Refused orders by step. Changes nothing. Index: refusals_pkey of each day.
SELECT date_bin(%(step)s, at, 'epoch'::timestamptz), code, sum(orders)::bigint
FROM refused.refusals
WHERE sale_id = %(sale_id)s AND at >= %(since)s AND at < %(until)s
GROUP BY 1, 2 ORDER BY 1, 2;

-- name: read_totals
-- The sums of a sale by currency. Changes nothing. Index: minutes_pkey of each day.
SELECT currency, sum(orders)::bigint, sum(units)::bigint, sum(orders_minor)::bigint, sum(paid)::bigint,
    sum(paid_units)::bigint, sum(revenue_minor)::bigint, sum(cancelled)::bigint, sum(expired)::bigint,
    sum(rejected)::bigint, sum(refunds)::bigint, sum(refunded_minor)::bigint
FROM figures.minutes
WHERE sale_id = %(sale_id)s
GROUP BY currency ORDER BY currency;

-- name: read_all_refusals
-- The refused orders of a sale by code, with their first and last second. Changes nothing.
-- Index: refusals_pkey of each day.
SELECT code, sum(orders)::bigint, min(at), max(at)
FROM refused.refusals
WHERE sale_id = %(sale_id)s
GROUP BY code ORDER BY code;

-- name: read_pay_times
-- The histogram of times to pay. Changes nothing. Index: pay_times_pkey of each day.
SELECT step, sum(orders)::bigint FROM figures.pay_times WHERE sale_id = %(sale_id)s GROUP BY step ORDER BY step;

-- name: read_skus
-- The units of each SKU, all and of the last seconds, with its first and last reservation. Changes nothing.
-- Index: sku_seconds_pkey of each day.
SELECT sku, sum(reserved)::bigint, sum(returned)::bigint,
    coalesce(sum(reserved - returned) FILTER (WHERE at >= %(recent)s), 0)::bigint,
    min(first_reserved_at), max(last_reserved_at)
FROM figures.sku_seconds
WHERE sale_id = %(sale_id)s
GROUP BY sku ORDER BY sku;

-- name: read_sell_outs
-- The moments at which the units in hand of a SKU reached its stock: the last reservation of the second. A SKU has
-- `stock` since `since`. Changes nothing. Index: sku_seconds_pkey of each day.
WITH held AS (
    SELECT sku, at, last_reserved_at, sum(reserved - returned) OVER (PARTITION BY sku ORDER BY at) AS units
    FROM figures.sku_seconds
    WHERE sale_id = %(sale_id)s
), judged AS (
    SELECT h.sku, h.at, h.last_reserved_at, h.units >= s.stock AS is_sold_out
    FROM held h
    CROSS JOIN LATERAL (
        SELECT w.stock
        FROM unnest(%(skus)s::text[], %(sinces)s::timestamptz[], %(stocks)s::bigint[]) AS w (sku, since, stock)
        WHERE w.sku = h.sku AND w.since <= coalesce(h.last_reserved_at, h.at)
        ORDER BY w.since DESC LIMIT 1
    ) s
), turns AS (
    SELECT sku, at, last_reserved_at, is_sold_out, lag(is_sold_out, 1, false) OVER (PARTITION BY sku ORDER BY at) AS was
    FROM judged
)
SELECT sku, coalesce(last_reserved_at, at) FROM turns WHERE is_sold_out AND NOT was ORDER BY 2, 1 LIMIT %(limit)s;

-- name: read_restocks
-- In the catalogue: units that were added and reached their lane. Changes nothing. Index: restocks_pkey.
SELECT sku, applied_at, quantity
FROM restocks
WHERE sale_id = %(sale_id)s AND applied_at IS NOT NULL
ORDER BY applied_at;
