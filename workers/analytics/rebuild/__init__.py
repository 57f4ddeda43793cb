"""Counts all figures again from the event log into a second generation, which then takes the place of the first one.

The first generation is served and counted meanwhile. The result of a crash: before the switch, the first generation is
as it was, and the next rebuild starts anew; after it, the second generation is in its place.
"""
