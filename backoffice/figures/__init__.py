"""Live figures of running sales for staff: stock, counts, verdicts and backlogs, once a second."""
