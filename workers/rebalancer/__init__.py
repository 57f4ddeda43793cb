"""Moves units between the lanes of sales over many lanes, so that every unit finds a buyer."""
