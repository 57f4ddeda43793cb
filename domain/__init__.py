"""The words of a flash sale: ids, states, topology, codecs, problem codes.

Pure: performs no I/O and imports no other package of the project.
"""
