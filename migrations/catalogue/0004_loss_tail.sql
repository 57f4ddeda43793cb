-- Whether a lane that went back had stood still when it was last looked at: if not, it may have taken orders after that
-- which nobody knows, and invariant B cannot be proved for the sales that were open.
ALTER TABLE lane_losses ADD COLUMN was_quiet boolean NOT NULL DEFAULT false;
-- A lane may also be lost before anybody saw an entry of it: found 0, floor 0.
ALTER TABLE lane_losses DROP CONSTRAINT lane_losses_check, ADD CHECK (floor_seq >= found_seq);
