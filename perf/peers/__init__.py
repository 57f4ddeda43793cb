"""The order endpoint in other languages, to compare with: built from the folders beside this module."""
