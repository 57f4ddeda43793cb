-- name: leave_notice
-- Once per notice: its id is new each time, and whoever sends it drops an id that it knows.
INSERT INTO outbox (destination, partition, events) VALUES (%(destination)s, %(partition)s, %(events)s);
