-- How the number of a sale's lanes was chosen. `lanes_auto`: from the expected buyers or the stock, again at each
-- change of the draft; `lane_count` is then the number chosen last.
ALTER TABLE sales ADD COLUMN lanes_auto boolean NOT NULL DEFAULT false;
ALTER TABLE sales ADD COLUMN expected_buyers integer CHECK (expected_buyers > 0);
