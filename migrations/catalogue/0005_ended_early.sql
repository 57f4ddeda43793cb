-- Staff may end a sale before its window: `ends_at` is then when they did, and everything that is kept for a time after
-- a sale's end counts from there. A sale that was ended before it began ends before its start.
ALTER TABLE sales DROP CONSTRAINT sales_check;
ALTER TABLE sales ADD CONSTRAINT sales_window CHECK (starts_at < ends_at OR ended) NOT VALID;
ALTER TABLE sales VALIDATE CONSTRAINT sales_window;
